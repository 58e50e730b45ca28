#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "search/optimizer.h"
#include "server/queue/trial_proposer.h"

namespace qpruner::server {
namespace {

search::Algorithm ToAlgorithm(v1::Search::Algorithm algorithm) {
  switch (algorithm) {
    case v1::Search::UNIFORM:
      return search::Algorithm::UNIFORM;
    case v1::Search::RANDOM:
      return search::Algorithm::RANDOM;
    case v1::Search::MUTUAL_INFORMATION:
      return search::Algorithm::MUTUAL_INFORMATION;
    case v1::Search::SENSITIVITY_LP:
      return search::Algorithm::SENSITIVITY_LP;
    default:
      return search::Algorithm::BAYESIAN;
  }
}

class SearchProposer final : public TrialProposer {
 public:
  absl::StatusOr<std::optional<TrialProposal>> Propose(
      const v1::Search& asked, const search::SearchSpace& space, int64_t budget_bytes,
      absl::Span<const search::Trial> history) const override {
    // Built anew each time: nothing that a restart could lose.
    ASSIGN_OR_RETURN(
        const std::unique_ptr<search::Optimizer> optimizer,
        search::MakeOptimizer(ToAlgorithm(asked.algorithm()), space,
                              {.budget_bytes = budget_bytes,
                               .seed = asked.seed(),
                               .max_trials = asked.max_trials(),
                               .metric = asked.quality_metric() == v1::Search::PERPLEXITY
                                             ? search::QualityMetric::PERPLEXITY
                                             : search::QualityMetric::KL_DIVERGENCE}));
    absl::StatusOr<search::Proposal> proposal =
        optimizer->Propose({history.data(), history.size()}, static_cast<int>(history.size()) + 1);
    if (absl::IsOutOfRange(proposal.status())) return std::nullopt;
    if (!proposal.ok()) return proposal.status();
    return TrialProposal{std::move(proposal->assignment), std::move(proposal->origin)};
  }
};

}  // namespace

std::unique_ptr<TrialProposer> MakeSearchProposer() { return std::make_unique<SearchProposer>(); }

}  // namespace qpruner::server
