// How much of each kind to prune: heads and MLP channels need not lose the same share.
//
// Given how many parameters must go, widths are chosen by what they cost: the mean KL divergence of
// the pruned from the original model over calibration samples. With one shape for all blocks there
// are few candidates (a number of heads decides the MLP width), and each is measured as a whole.
// With shapes of their own, each block's heads and MLP are measured alone at a few widths, and the
// cheapest combination by the sum of those costs is found by dynamic programming (multiple-choice
// knapsack); the sum is an approximation, so the combination is then measured, beside the plain
// plans that it has to beat. Which groups of a block go is the importance scores' choice.
#ifndef QPRUNER_WORKER_ENGINE_PRUNE_WIDTH_SEARCH_H_
#define QPRUNER_WORKER_ENGINE_PRUNE_WIDTH_SEARCH_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruning_plan.h"

namespace qpruner::engine {

// A plan that was measured.
struct WidthCandidate {
  std::string origin;              // "one ratio", "3 of 4 heads", "searched per block"
  std::vector<KeptCounts> counts;  // One a block.
  int64_t parameter_count = 0;     // Of the whole pruned model.
  double divergence = 0;           // KL(original || pruned), nats a token.
};

struct WidthSearchOutcome {
  PruningPlan plan;  // The best candidate's.
  size_t best = 0;
  // All of them keep at most the parameters allowed. The first is the plain plan: the smallest one
  // ratio for heads and channels that is enough.
  std::vector<WidthCandidate> candidates;
};

// The most parameters that the pruned model may have: what is left of the model's when
// `parameter_ratio` of them go.
int64_t AllowedParameters(const ModelConfig& config, double parameter_ratio);

// What SearchWidths refuses without scores, so that a bad request is refused before any work.
// INVALID_ARGUMENT: as CheckPruning, or no plan within `options` removes enough; says how much can
// be removed.
absl::Status CheckWidthSearch(const ModelConfig& config, double parameter_ratio,
                              const PruningOptions& options);

// Removes at least `parameter_ratio`, in (0, 1), of all of the model's parameters. Of `options`,
// layout, alignment and the block range are used. `importance` is ScoreGroups' of `source`.
// INVALID_ARGUMENT: as CheckWidthSearch and KeepHighest, or the model collapses at every plan.
absl::StatusOr<WidthSearchOutcome> SearchWidths(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<BlockImportance>& importance, double parameter_ratio,
    const PruningOptions& options, const std::function<void(double)>& on_progress = {});

// One choice of each unit so that the choices' savings add up to `needed` or more at the least sum
// of costs. savings[unit][choice] and costs[unit][choice]; every unit must have a choice. Savings
// are counted in `kSteps` steps and rounded down, so the sum is never too small. Empty if no
// combination saves enough.
std::vector<size_t> CheapestChoices(const std::vector<std::vector<int64_t>>& savings,
                                    const std::vector<std::vector<double>>& costs, int64_t needed);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_PRUNE_WIDTH_SEARCH_H_
