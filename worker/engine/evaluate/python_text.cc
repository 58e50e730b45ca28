#include "worker/engine/evaluate/python_text.h"

#include <locale.h>
#include <wctype.h>

#include <cstddef>

#include "absl/strings/str_replace.h"

namespace qpruner::engine {
namespace {

bool Continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// The code point that begins at text[*at]; moves *at behind it.
char32_t NextCodePoint(absl::string_view text, size_t* at) {
  const auto lead = static_cast<unsigned char>(text[(*at)++]);
  if (lead < 0x80) return lead;
  char32_t point = lead >= 0xF0 ? lead & 0x07u : lead >= 0xE0 ? lead & 0x0Fu : lead & 0x1Fu;
  while (*at < text.size() && Continues(text[*at])) {
    point = (point << 6) | (static_cast<unsigned char>(text[(*at)++]) & 0x3Fu);
  }
  return point;
}

void AppendCodePoint(char32_t point, std::string* out) {
  const auto byte = [&](char32_t value) { out->push_back(static_cast<char>(value)); };
  if (point < 0x80) {
    byte(point);
  } else if (point < 0x800) {
    byte(0xC0 | (point >> 6));
    byte(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    byte(0xE0 | (point >> 12));
    byte(0x80 | ((point >> 6) & 0x3F));
    byte(0x80 | (point & 0x3F));
  } else {
    byte(0xF0 | (point >> 18));
    byte(0x80 | ((point >> 12) & 0x3F));
    byte(0x80 | ((point >> 6) & 0x3F));
    byte(0x80 | (point & 0x3F));
  }
}

// str.isspace() of one character.
bool IsSpace(char32_t point) {
  return (point >= 0x09 && point <= 0x0D) || (point >= 0x1C && point <= 0x20) || point == 0x85 ||
         point == 0xA0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) ||
         point == 0x2028 || point == 0x2029 || point == 0x202F || point == 0x205F ||
         point == 0x3000;
}

// Unicode's case tables, whatever the process's locale is.
locale_t UnicodeLocale() {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return locale;
}

}  // namespace

int64_t CodePointCount(absl::string_view text) {
  int64_t count = 0;
  for (const char byte : text) count += Continues(byte) ? 0 : 1;
  return count;
}

absl::string_view StripRight(absl::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && Continues(text[begin])) --begin;
    size_t at = begin;
    if (!IsSpace(NextCodePoint(text, &at))) break;
    text = text.substr(0, begin);
  }
  return text;
}

absl::string_view Strip(absl::string_view text) {
  while (!text.empty()) {
    size_t at = 0;
    if (!IsSpace(NextCodePoint(text, &at))) break;
    text = text.substr(at);
  }
  return StripRight(text);
}

std::string Capitalize(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const bool first = at == 0;
    const auto point = static_cast<wint_t>(NextCodePoint(text, &at));
    const wint_t cased =
        first ? towupper_l(point, UnicodeLocale()) : towlower_l(point, UnicodeLocale());
    AppendCodePoint(static_cast<char32_t>(cased), &result);
  }
  return result;
}

std::string ReplaceAll(absl::string_view text, absl::string_view from, absl::string_view to) {
  return absl::StrReplaceAll(text, {{from, to}});
}

}  // namespace qpruner::engine
