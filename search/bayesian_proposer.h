// The Gaussian-process half of the BAYESIAN optimizer.
//
// Model. log(quality + e) of an assignment x is a Gaussian process (gaussian_process.h) with mean
// a + b log(base_quality + sum of sensitivities + e): a = 0, b = 1 says that quantization errors
// add up; the data say by how much they do not, overall (a, b) and for particular groups (the
// process, over log2 of the bits scaled to [0, 1] and divided by the root of the number of groups).
// e is 1e-4 of the KL of the smallest assignment: differences below it are not worth bytes, and a
// 16-bit baseline of KL 0 stays finite. For perplexity, log(perplexity) has the mean
// a + b (base_quality + sum of sensitivities).
//
// Pending trials count as measured at the posterior mean (kriging believer; Ginsbourger, Le Riche,
// Carraro 2010), so parallel proposals spread out.
//
// Acquisition: expected hypervolume improvement over (bytes, log quality) in closed form
// (acquisition.h). The reference point lies kBudgetEmphasis of the byte range beyond the budget. As
// nothing beyond the budget is proposed, that strip is exactly kBudgetEmphasis x range x the
// expected improvement of the best quality within the budget: one acquisition explores the whole
// front, and still works on the point that a job's result is made from.
//
// It is maximised by local search from 8 sensitivity plans and from points of the front, with
// single changes and swaps (one group up, another down), under the hard budget.
#ifndef QPRUNER_SEARCH_BAYESIAN_PROPOSER_H_
#define QPRUNER_SEARCH_BAYESIAN_PROPOSER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "search/optimizer.h"
#include "search/sensitivity_plan.h"
#include "search/space.h"
#include "search/trial.h"

namespace qpruner::search {

// Immutable and thread-safe.
class BayesianProposer {
 public:
  // All arguments valid (optimizer.h); `max_bytes` is the budget, or the largest assignment.
  BayesianProposer(const SearchSpace& space, QualityMetric metric, int64_t max_bytes, int64_t seed);

  // The best assignment found that the history does not hold; nullopt if the local search met none.
  std::optional<Assignment> Propose(std::span<const Trial> history, int index) const;

  // What the model makes of a history; for reports and tests.
  struct Fit {
    double intercept, slope;                           // a, b.
    double signal_stddev, length_scale, noise_stddev;  // See Hyperparameters.
  };
  Fit FitModel(std::span<const Trial> history) const;

 private:
  class Search;

  double Basis(double total_sensitivity) const;
  double Value(double quality) const;

  const SearchSpace space_;
  const QualityMetric metric_;
  const int64_t max_bytes_;
  const int64_t seed_;
  const SensitivityPlanner planner_;
  double smoothing_;                           // e.
  std::vector<std::vector<double>> features_;  // Coordinate of a group's choice.
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_BAYESIAN_PROPOSER_H_
