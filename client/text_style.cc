#include "client/text_style.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace qpruner {
namespace {

const char* Escape(Paint paint) {
  switch (paint) {
    case Paint::kNone:
      return "";
    case Paint::kBold:
      return "\x1b[1m";
    case Paint::kDim:
      return "\x1b[2m";
    case Paint::kRed:
      return "\x1b[31m";
    case Paint::kGreen:
      return "\x1b[32m";
    case Paint::kYellow:
      return "\x1b[33m";
    case Paint::kBlue:
      return "\x1b[34m";
    case Paint::kCyan:
      return "\x1b[36m";
    case Paint::kBoldGreen:
      return "\x1b[1;32m";
    case Paint::kBoldCyan:
      return "\x1b[1;36m";
  }
  return "";
}

// Length of the UTF-8 sequence that starts `text`; 0 if it is broken.
size_t SequenceLength(absl::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  const size_t length = first < 0x80             ? 1
                        : (first & 0xE0) == 0xC0 ? 2
                        : (first & 0xF0) == 0xE0 ? 3
                        : (first & 0xF8) == 0xF0 ? 4
                                                 : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

std::string Painted(const TextStyle& style, Paint paint, absl::string_view text) {
  if (!style.color || paint == Paint::kNone || text.empty()) return std::string(text);
  return absl::StrCat(Escape(paint), text, "\x1b[0m");
}

int DisplayWidth(absl::string_view text) {
  int width = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      while (i < text.size() && text[i] != 'm') ++i;
    } else if ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) {
      ++width;
    }
  }
  return width;
}

std::string PadRight(absl::string_view text, int width) {
  return absl::StrCat(text, std::string(std::max(0, width - DisplayWidth(text)), ' '));
}

std::string PadLeft(absl::string_view text, int width) {
  return absl::StrCat(std::string(std::max(0, width - DisplayWidth(text)), ' '), text);
}

std::string Shortened(const TextStyle& style, absl::string_view text, int width) {
  if (DisplayWidth(text) <= width) return std::string(text);
  const absl::string_view mark = style.unicode ? "…" : "...";
  const int keep = width - DisplayWidth(mark);
  if (keep <= 0) return std::string();
  std::string out;
  for (int shown = 0; shown < keep && !text.empty(); ++shown) {
    const size_t length = std::max<size_t>(1, SequenceLength(text));
    absl::StrAppend(&out, text.substr(0, length));
    text.remove_prefix(length);
  }
  return absl::StrCat(out, mark);
}

std::vector<std::string> Wrapped(absl::string_view text, int width) {
  std::vector<std::string> lines;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (lines.empty() || DisplayWidth(lines.back()) + 1 + DisplayWidth(word) > width) {
      lines.emplace_back(word);
    } else {
      absl::StrAppend(&lines.back(), " ", word);
    }
  }
  return lines;
}

std::string Printable(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t length = SequenceLength(text);
    const auto first = static_cast<uint8_t>(text[0]);
    // U+0080 to U+009F are control characters too.
    const bool control = first < 0x20 || first == 0x7F ||
                         (first == 0xC2 && length == 2 && static_cast<uint8_t>(text[1]) < 0xA0);
    if (length == 0 || control) {
      out.push_back('?');
    } else {
      absl::StrAppend(&out, text.substr(0, length));
    }
    text.remove_prefix(std::max<size_t>(1, length));
  }
  return out;
}

std::string FormatBytes(int64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1000 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", value < 10 ? 2 : 1, value, units[unit]);
}

std::string FormatElapsed(absl::Duration duration) {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(duration));
  if (seconds < 9.95) return absl::StrFormat("%.1f s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return absl::StrCat(whole, " s");
  if (whole < 3600) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string FormatQuality(double value) {
  if (value == 0) return "0";
  if (!std::isfinite(value)) return "-";
  if (std::fabs(value) < 1e-4 || std::fabs(value) >= 1e5) return absl::StrFormat("%.1e", value);
  return absl::StrFormat("%.*f", std::fabs(value) < 10 ? 5 : 2, value);
}

std::string FormatPerplexity(double value) {
  if (!std::isfinite(value) || value <= 0) return "-";
  if (value >= 1e6) return absl::StrFormat("%.2e", value);
  return absl::StrFormat("%.*f", value < 1000 ? 3 : 0, value);
}

}  // namespace qpruner
