#include "worker/engine/tasks/budget_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "proto/status_codec.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/tasks/spec_mapping.h"

namespace qpruner::engine {
namespace {

// Bytes of the linears with every group in the format that stores it smallest.
int64_t SmallestLinearBytes(const v1::Search& search, const ModelConfig& config,
                            const std::vector<Format>& formats) {
  int64_t bytes = 0;
  for (const LinearGroup& group : MakeSearchGroups(config.num_blocks(), GranularityOf(search))) {
    int64_t smallest = std::numeric_limits<int64_t>::max();
    for (const Format& format : formats) {
      smallest = std::min(smallest, PackedBytes(config, group, format));
    }
    bytes += smallest;
  }
  return bytes;
}

}  // namespace

absl::Status CheckBudget(const v1::Search& search, const ModelConfig& config,
                         const std::vector<Format>& formats) {
  if (search.budget_case() == v1::Search::BUDGET_NOT_SET) return absl::OkStatus();
  const int64_t fixed = FixedBytes(config);
  const int64_t smallest = fixed + SmallestLinearBytes(search, config, formats);
  int64_t budget = search.max_bytes();
  if (search.budget_case() == v1::Search::kMaxAverageBits) {
    const auto weights = static_cast<double>(LinearParameterCount(config));
    budget = fixed + static_cast<int64_t>(std::floor(search.max_average_bits() * weights / 8));
  }
  if (smallest <= budget) return absl::OkStatus();
  return WithErrorInfo(
      absl::FailedPreconditionError(absl::StrCat(
          "No assignment meets the budget: the smallest one stores ", smallest,
          " bytes of weights, ", fixed, " of them outside of the searched layers; the budget is ",
          budget,
          " bytes. Raise search.max_bytes or search.max_average_bits, prune more, or allow fewer "
          "bits")),
      "BUDGET_TOO_SMALL",
      {{"minimum_bytes", absl::StrCat(smallest)}, {"budget_bytes", absl::StrCat(budget)}});
}

}  // namespace qpruner::engine
