// Who says what a job tries next.
#ifndef QPRUNER_SERVER_QUEUE_TRIAL_PROPOSER_H_
#define QPRUNER_SERVER_QUEUE_TRIAL_PROPOSER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "qpruner/v1/spec.pb.h"
#include "search/space.h"
#include "search/trial.h"

namespace qpruner::server {

struct TrialProposal {
  search::Assignment assignment;
  std::string origin;  // See v1.Trial.origin.
};

// Thread-safe. A pure function of its arguments: the same history gives the same proposal, in
// this process or the next.
class TrialProposer {
 public:
  virtual ~TrialProposer() = default;
  // The assignment to try after `history`, or nothing if there is none left worth trying. May take
  // some 100 ms. Errors are bugs or spaces that the search refuses.
  virtual absl::StatusOr<std::optional<TrialProposal>> Propose(
      const v1::Search& search, const search::SearchSpace& space, int64_t budget_bytes,
      absl::Span<const search::Trial> history) const = 0;
};

// Proposes with the algorithm that the job names, from search/. The uniform assignments come first
// whatever the algorithm: they are the baselines of the report.
std::unique_ptr<TrialProposer> MakeSearchProposer();

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TRIAL_PROPOSER_H_
