#include "server/store/page_token.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "server/store/stored_record.h"

namespace qpruner::server {
namespace {

constexpr absl::string_view kVersion = "1";
constexpr size_t kChecksumDigits = 16;

// Of the position and the filter, whatever the order of its states. Every text is behind its
// length, so that no two filters read alike.
std::string Checksum(const JobFilter& filter, absl::string_view position) {
  std::vector<int> states(filter.states.begin(), filter.states.end());
  std::sort(states.begin(), states.end());
  states.erase(std::unique(states.begin(), states.end()), states.end());
  std::string text = absl::StrCat(position, "/", filter.project.size(), ":", filter.project);
  for (const int state : states) absl::StrAppend(&text, "/", state);
  for (const auto& [key, value] : filter.labels) {
    absl::StrAppend(&text, "/", key.size(), ":", key, "=", value.size(), ":", value);
  }
  return Sha256Hex(text).substr(0, kChecksumDigits);
}

}  // namespace

std::string EncodePageToken(const JobFilter& filter, int64_t position) {
  const std::string number = absl::StrCat(position);
  return absl::WebSafeBase64Escape(absl::StrCat(kVersion, Checksum(filter, number), number));
}

absl::StatusOr<int64_t> StartOfPage(const JobFilter& filter, int page_size,
                                    absl::string_view token) {
  if (page_size < 1) return absl::InvalidArgumentError("page_size must be at least 1");
  if (filter.labels.size() > kMaxFilterLabels) {
    return absl::InvalidArgumentError(
        absl::StrCat("labels must be at most ", kMaxFilterLabels, ", are ", filter.labels.size()));
  }
  if (token.empty()) return std::numeric_limits<int64_t>::max();
  const size_t head = kVersion.size() + kChecksumDigits;
  std::string text;
  int64_t position = 0;
  if (token.size() <= 100 && absl::WebSafeBase64Unescape(token, &text) && text.size() > head &&
      text.compare(0, kVersion.size(), std::string(kVersion)) == 0) {
    const std::string number = text.substr(head);
    if (absl::SimpleAtoi(number, &position) &&
        text.substr(kVersion.size(), kChecksumDigits) == Checksum(filter, number)) {
      return position;
    }
  }
  return absl::InvalidArgumentError(
      "page_token is not one that this list returned for these parameters: leave it empty for the "
      "first page, and keep parent, states and labels as they were for the next ones");
}

}  // namespace qpruner::server
