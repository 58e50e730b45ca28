#include "client/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qpruner {
namespace {

std::string Environment(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

bool LocaleIsUtf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string value = absl::AsciiStrToLower(Environment(name));
    if (value.empty()) continue;
    return absl::StrContains(value, "utf-8") || absl::StrContains(value, "utf8");
  }
  return false;
}

}  // namespace

Terminal DetectTerminal(int fd, bool ascii, ColorChoice color, int max_width) {
  Terminal terminal;
  const bool tty = isatty(fd) == 1;
  const bool dumb = Environment("TERM").empty() || Environment("TERM") == "dumb";
  terminal.live = tty && !dumb;
  terminal.style.unicode = !ascii && LocaleIsUtf8();
  terminal.style.color =
      color == ColorChoice::kAlways ||
      (color == ColorChoice::kAuto && terminal.live && Environment("NO_COLOR").empty());
  int columns = 0;
  winsize size{};
  if (tty && ioctl(fd, TIOCGWINSZ, &size) == 0) {
    columns = size.ws_col;
    if (size.ws_row > 0) terminal.rows = size.ws_row;
  }
  if (columns <= 0 && (!absl::SimpleAtoi(Environment("COLUMNS"), &columns) || columns <= 0)) {
    columns = 80;
  }
  // Below 40 columns nothing fits, whatever is said.
  terminal.style.width = std::clamp(columns, 40, std::max(40, max_width));
  return terminal;
}

std::string LiveRegion::Erase() const {
  if (shown_.empty()) return "";
  return absl::StrCat("\r\x1b[", shown_.size(), "A\x1b[J");
}

void LiveRegion::Draw(const std::vector<std::string>& lines) {
  if (lines == shown_) return;
  std::string out;
  if (lines.size() == shown_.size() && !lines.empty()) {
    // Only what changed, so that nothing flickers.
    absl::StrAppend(&out, "\r\x1b[", shown_.size(), "A");
    for (size_t i = 0; i < lines.size(); ++i) {
      if (lines[i] != shown_[i]) absl::StrAppend(&out, lines[i], "\x1b[K");
      absl::StrAppend(&out, "\r\n");
    }
  } else {
    out = Erase();
    for (const std::string& line : lines) absl::StrAppend(&out, line, "\r\n");
  }
  write_(out);
  shown_ = lines;
}

void LiveRegion::PrintAbove(absl::string_view text) {
  const std::vector<std::string> lines = shown_;
  std::string out = absl::StrCat(Erase(), text);
  for (const std::string& line : lines) absl::StrAppend(&out, line, "\r\n");
  write_(out);
}

void LiveRegion::Clear() {
  if (!shown_.empty()) write_(Erase());
  shown_.clear();
}

}  // namespace qpruner
