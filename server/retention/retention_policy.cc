#include "server/retention/retention_policy.h"

#include <cstdint>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace qpruner::server {

absl::StatusOr<absl::Duration> ParseRetention(const std::string& text) {
  if (text == "forever") return absl::InfiniteDuration();
  absl::string_view rest = text;
  absl::Duration total;
  bool valid = !rest.empty();
  if (const size_t end = rest.find('d'); end != absl::string_view::npos) {
    // absl::ParseDuration ends at hours.
    int64_t days = 0;
    valid = absl::SimpleAtoi(rest.substr(0, end), &days) && days >= 0 && days <= 36'500;
    total = days * absl::Hours(24);
    rest.remove_prefix(end + 1);
  }
  absl::Duration part;
  if (valid && !rest.empty()) {
    valid = absl::ParseDuration(rest, &part) && part >= absl::ZeroDuration() &&
            part < absl::Hours(24) * 36'500;
  }
  if (valid) return total + part;
  return absl::InvalidArgumentError(
      absl::StrCat("must be a time such as 30d, 12h or 90m, or forever, is \"", text, "\""));
}

}  // namespace qpruner::server
