// Chooses the trial that a job's result is made from.
#ifndef QPRUNER_SEARCH_SELECTION_H_
#define QPRUNER_SEARCH_SELECTION_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "search/trial.h"

namespace qpruner::search {

// Position of the measured trial of best quality within the budget; ties go to fewer bytes, then to
// the earlier trial. Qualities must come from data apart from those the result is reported on.
// NOT_FOUND: no measured trial fits; says which came closest, if any.
absl::StatusOr<size_t> ChooseTrial(std::span<const Trial> trials,
                                   std::optional<int64_t> budget_bytes);

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_SELECTION_H_
