// Proposes the assignments that a job tries, one after the other (ask/tell).
//
// A proposal is a pure function of the space, the options, its index and the history: whoever
// rebuilds an optimizer from stored trials, after a crash or on another server, gets the same
// proposals as one that was never interrupted. Random numbers depend on the seed and the index
// alone (random_stream.h). The history's states count too: a trial that was PENDING when a proposal
// was made must be so when it is to be made again.
//
// Every search begins with the uniform assignments ("uniform-4", "uniform-8", ...), inside the
// budget or not: they are the baselines of the report. Everything proposed after them fits the
// budget. Then, by algorithm:
//
//   UNIFORM             nothing.
//   RANDOM              uniformly drawn assignments within the budget ("random").
//   MUTUAL_INFORMATION  MutualInformationPlan for evenly spaced budgets ("mutual-information").
//   SENSITIVITY_LP      SensitivityPlanner (an exact knapsack DP) for the same ("sensitivity-lp").
//   BAYESIAN            a few sensitivity plans and a mutual-information plan, then a Gaussian
//                       process ("bayesian", see bayesian_proposer.h).
#ifndef QPRUNER_SEARCH_OPTIMIZER_H_
#define QPRUNER_SEARCH_OPTIMIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "search/space.h"
#include "search/trial.h"

namespace qpruner::search {

enum class Algorithm { UNIFORM, RANDOM, MUTUAL_INFORMATION, SENSITIVITY_LP, BAYESIAN };

// What Trial::quality is.
enum class QualityMetric {
  KL_DIVERGENCE,  // Nats a token; its logarithm is modelled.
  PERPLEXITY,     // Its logarithm, the mean negative log-likelihood, is modelled.
};

struct Options {
  // Bytes of all weights, fixed ones included. Unset: the whole range of the space.
  std::optional<int64_t> budget_bytes;
  int64_t seed = 42;
  // Also spaces the budgets of the sweeps and sizes the starting plans of BAYESIAN.
  int max_trials = 30;
  QualityMetric metric = QualityMetric::KL_DIVERGENCE;
};

struct Proposal {
  Assignment assignment;
  std::string origin;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // Proposal number `index` (from 1) given all earlier ones that are still known, by growing index.
  // Never repeats an assignment of the history. Thread-safe.
  // OUT_OF_RANGE: the search is over; says why: index > max_trials, the algorithm has no further
  // plan, or every assignment within the budget was proposed.
  // INVALID_ARGUMENT: the history does not fit the space.
  virtual absl::StatusOr<Proposal> Propose(std::span<const Trial> history, int index) const = 0;
};

// INVALID_ARGUMENT: the space is invalid (space.h), the budget is below the smallest assignment, or
// max_trials < 1.
absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(Algorithm algorithm, SearchSpace space,
                                                         Options options);

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_OPTIMIZER_H_
