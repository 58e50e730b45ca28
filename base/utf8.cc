#include "base/utf8.h"

#include "absl/strings/str_cat.h"

namespace qpruner {
namespace {

// Bytes of the character that `text` begins with, by table 3-7 of the Unicode standard (no overlong
// forms, no surrogates, nothing beyond U+10FFFF); 0: it begins with none.
size_t FirstCharacterBytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF   ? 2
                        : first >= 0xE0 && first <= 0xEF ? 3
                        : first >= 0xF0 && first <= 0xF4 ? 4
                                                         : 0;
  if (length == 0 || text.size() < length) return 0;
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

// Of one character of two or three bytes; 0 for others.
uint32_t ShortCodePoint(absl::string_view character) {
  const auto bits = [&](size_t i) { return static_cast<uint32_t>(character[i]) & 0x3F; };
  if (character.size() == 2) return (bits(0) & 0x1F) << 6 | bits(1);
  if (character.size() == 3) return (bits(0) & 0x0F) << 12 | bits(1) << 6 | bits(2);
  return 0;
}

// C1 controls, line and paragraph separators, and what turns the direction of writing.
bool IsControl(uint32_t code_point) {
  return (code_point >= 0x80 && code_point <= 0x9F) ||
         (code_point >= 0x2028 && code_point <= 0x202E) ||
         (code_point >= 0x2066 && code_point <= 0x2069);
}

}  // namespace

bool IsUtf8(absl::string_view text) { return FindInvalidUtf8(text) < 0; }

int64_t FindInvalidUtf8(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = FirstCharacterBytes(text.substr(i));
    if (length == 0) return static_cast<int64_t>(i);
    i += length;
  }
  return -1;
}

absl::string_view CutUtf8(absl::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t end = max_bytes;
  // A character has at most three bytes after its first.
  for (int i = 0; i < 3 && end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80; ++i) --end;
  return text.substr(0, end);
}

std::string ToUtf8(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = FirstCharacterBytes(text);
    if (length == 0) {
      result += "\xEF\xBF\xBD";
      text.remove_prefix(1);
    } else {
      result.append(text.data(), length);
      text.remove_prefix(length);
    }
  }
  return result;
}

std::string EscapeControls(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = FirstCharacterBytes(text);
    const auto first = static_cast<uint8_t>(text[0]);
    const uint32_t code_point = ShortCodePoint(text.substr(0, length));
    if (first == '\n' || first == '\r' || first == '\t') {
      result += first == '\n' ? "\\n" : first == '\r' ? "\\r" : "\\t";
    } else if (length == 0 || first < 0x20 || first == 0x7F) {
      absl::StrAppend(&result, "\\x", absl::Hex(first, absl::kZeroPad2));
    } else if (IsControl(code_point)) {
      absl::StrAppend(&result, "\\u", absl::Hex(code_point, absl::kZeroPad4));
    } else {
      result.append(text.data(), length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return result;
}

}  // namespace qpruner
