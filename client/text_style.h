// How text for people may look, and the figures in it.
#ifndef QPRUNER_CLIENT_TEXT_STYLE_H_
#define QPRUNER_CLIENT_TEXT_STYLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace qpruner {

struct TextStyle {
  // Columns to stay within.
  int width = 80;
  // Symbols beyond ASCII.
  bool unicode = true;
  // ANSI colours, of the reader's own palette.
  bool color = false;
};

enum class Paint { kNone, kBold, kDim, kRed, kGreen, kYellow, kBlue, kCyan, kBoldGreen, kBoldCyan };

// `text` between the paint's escape sequences, if the style has colour.
std::string Painted(const TextStyle& style, Paint paint, absl::string_view text);

// Columns that `text` takes: escape sequences none, every other character one.
int DisplayWidth(absl::string_view text);
// `text` filled up with spaces to `width` columns.
std::string PadRight(absl::string_view text, int width);
std::string PadLeft(absl::string_view text, int width);
// At most `width` columns: the end is cut away behind "…" (or "..."). `text` has no escapes.
std::string Shortened(const TextStyle& style, absl::string_view text, int width);
// Lines of at most `width` columns, broken at spaces; a longer word stays whole.
std::vector<std::string> Wrapped(absl::string_view text, int width);
// Text from outside, made safe to print: control characters and broken UTF-8 become "?".
std::string Printable(absl::string_view text);

// "512 B", "450.0 KiB", "1.50 GiB".
std::string FormatBytes(int64_t bytes);
// "0.4 s", "42 s", "3:07", "1:02:03".
std::string FormatElapsed(absl::Duration duration);
// A KL divergence or the like: "0", "0.18432", "2.1e-06".
std::string FormatQuality(double value);
// Four significant digits, at least three decimals below 1000: "4.086", "27.150", "1234".
std::string FormatPerplexity(double value);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_TEXT_STYLE_H_
