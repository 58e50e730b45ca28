#include "net/s3_xml.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace qpruner {
namespace {

constexpr std::pair<const char*, char> kEntities[] = {
    {"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};

std::string ResolveEntities(absl::string_view text) {
  std::string resolved;
  while (!text.empty()) {
    bool found = false;
    for (const auto& [entity, character] : kEntities) {
      if (!absl::StartsWith(text, entity)) continue;
      resolved += character;
      text.remove_prefix(absl::string_view(entity).size());
      found = true;
      break;
    }
    if (found) continue;
    if (const size_t end = text.substr(0, 10).find(';');
        absl::StartsWith(text, "&#") && end != absl::string_view::npos) {
      const bool hex = text.size() > 2 && (text[2] == 'x' || text[2] == 'X');
      const std::string digits(text.substr(hex ? 3 : 2, end - (hex ? 3 : 2)));
      const long code = std::strtol(digits.c_str(), nullptr, hex ? 16 : 10);
      // Names and times of ours are ASCII.
      resolved += code > 0 && code < 128 ? static_cast<char>(code) : '?';
      text.remove_prefix(end + 1);
      continue;
    }
    resolved += text[0];
    text.remove_prefix(1);
  }
  return resolved;
}

}  // namespace

std::vector<absl::string_view> XmlElements(absl::string_view xml, absl::string_view name) {
  const std::string open = absl::StrCat("<", name, ">");
  const std::string close = absl::StrCat("</", name, ">");
  std::vector<absl::string_view> found;
  while (true) {
    const size_t begin = xml.find(open);
    if (begin == absl::string_view::npos) return found;
    const size_t end = xml.find(close, begin);
    if (end == absl::string_view::npos) return found;
    found.push_back(xml.substr(begin + open.size(), end - begin - open.size()));
    xml.remove_prefix(end + close.size());
  }
}

std::string XmlText(absl::string_view xml, absl::string_view name) {
  const std::vector<absl::string_view> found = XmlElements(xml, name);
  return found.empty() ? "" : ResolveEntities(found.front());
}

}  // namespace qpruner
