// What standard output is, and a region at its end that can be drawn again.
#ifndef QPRUNER_CLIENT_TERMINAL_H_
#define QPRUNER_CLIENT_TERMINAL_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/text_style.h"

namespace qpruner {

struct Terminal {
  TextStyle style;
  // Lines can be drawn again.
  bool live = false;
  // Of the screen.
  int rows = 24;
};

enum class ColorChoice { kAuto, kAlways, kNever };

// Looks at descriptor `fd` and the environment: UTF-8 from LC_ALL, LC_CTYPE or LANG; colour unless
// NO_COLOR is set or TERM is dumb; at most `max_width` columns.
Terminal DetectTerminal(int fd, bool ascii, ColorChoice color, int max_width);

// The last lines of a terminal, which the next Draw replaces. Not thread-safe.
class LiveRegion {
 public:
  // `write` gets bytes for the terminal.
  explicit LiveRegion(std::function<void(absl::string_view)> write) : write_(std::move(write)) {}

  // Shows `lines` (none may be wider than the screen) in place of what was drawn before.
  void Draw(const std::vector<std::string>& lines);
  // Prints `text`, which ends in a newline, above the region for good.
  void PrintAbove(absl::string_view text);
  // Removes the region.
  void Clear();

 private:
  std::string Erase() const;

  const std::function<void(absl::string_view)> write_;
  std::vector<std::string> shown_;
};

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_TERMINAL_H_
