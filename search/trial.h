// What an optimizer is told about one assignment that was proposed.
#ifndef QPRUNER_SEARCH_TRIAL_H_
#define QPRUNER_SEARCH_TRIAL_H_

#include <cmath>
#include <cstdint>

#include "search/space.h"

namespace qpruner::search {

enum class TrialState {
  PENDING,     // Proposed; being measured. `quality` means nothing.
  MEASURED,    // `quality` is set.
  INFEASIBLE,  // Cannot be measured, such as out of device memory. A result: never proposed again.
};

struct Trial {
  int index = 0;  // Order of proposal, from 1.
  Assignment assignment;
  TrialState state = TrialState::PENDING;
  // Smaller is better: KL in nats a token, or perplexity (see Options::metric). A value that is not
  // finite (a destroyed model) counts as INFEASIBLE. Keep all 64 bits when storing it: proposals
  // after a restart are the same only if the history is.
  double quality = 0;
  int64_t bytes = 0;  // TotalBytes of the assignment.
};

inline bool HasQuality(const Trial& trial) {
  return trial.state == TrialState::MEASURED && std::isfinite(trial.quality);
}

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_TRIAL_H_
