#include "search/selection.h"

#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace qpruner::search {

absl::StatusOr<size_t> ChooseTrial(std::span<const Trial> trials,
                                   std::optional<int64_t> budget_bytes) {
  std::optional<size_t> best;
  std::optional<int64_t> smallest;
  for (size_t i = 0; i < trials.size(); ++i) {
    const Trial& trial = trials[i];
    if (!HasQuality(trial)) continue;
    if (!smallest || trial.bytes < *smallest) smallest = trial.bytes;
    if (budget_bytes && trial.bytes > *budget_bytes) continue;
    const auto rank = [](const Trial& t) { return std::tuple(t.quality, t.bytes, t.index); };
    if (!best || rank(trial) < rank(trials[*best])) best = i;
  }
  if (best) return *best;
  if (!smallest) return absl::NotFoundError("No trial was measured");
  return absl::NotFoundError(absl::StrCat("No measured trial fits the budget of ", *budget_bytes,
                                          " bytes: the smallest has ", *smallest));
}

}  // namespace qpruner::search
