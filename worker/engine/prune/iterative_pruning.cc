#include "worker/engine/prune/iterative_pruning.h"

#include <ATen/ATen.h>

#include <utility>

#include "base/status_macros.h"
#include "worker/engine/prune/pruned_source.h"

namespace qpruner::engine {
namespace {

// Writes the scores of what a plan kept to the places of those groups in the whole model.
void Scatter(const std::vector<int64_t>& units, const at::Tensor& scores, at::Tensor& all) {
  all.index_copy_(0, at::tensor(units, at::kLong), scores);
}

}  // namespace

absl::StatusOr<PruningOutcome> PruneInSteps(WeightSource& source,
                                            const std::vector<TokenBatch>& batches,
                                            const ImportanceOptions& importance,
                                            const PruningOptions& pruning,
                                            const std::function<void(double)>& on_progress) {
  const ModelConfig& config = source.config();
  RETURN_IF_ERROR(CheckPruning(config, pruning));
  PruningOutcome outcome;
  outcome.plan = FullPlan(config);
  for (int64_t step = 1; step <= pruning.steps; ++step) {
    PrunedSource current(source, outcome.plan);
    ImportanceOptions options = importance;
    options.seed += static_cast<uint64_t>(step - 1);
    const std::vector<BlockImportance> scores =
        ScoreGroups(current, batches, options, [&](double fraction) {
          if (on_progress) {
            on_progress((static_cast<double>(step - 1) + fraction) /
                        static_cast<double>(pruning.steps));
          }
        });
    RETURN_IF_ERROR(CheckImportance(current.config(), scores, PrunedBlocks(config, pruning)));
    if (step == 1) {
      for (const BlockImportance& block : scores) {
        outcome.importance.push_back({block.kv_heads.clone(), block.mlp_channels.clone()});
      }
    }
    for (size_t block = 0; block < scores.size(); ++block) {
      Scatter(outcome.plan.blocks[block].kv_heads, scores[block].kv_heads,
              outcome.importance[block].kv_heads);
      Scatter(outcome.plan.blocks[block].mlp_channels, scores[block].mlp_channels,
              outcome.importance[block].mlp_channels);
    }
    ASSIGN_OR_RETURN(
        outcome.plan,
        KeepHighest(outcome.plan, scores, CountKept(config, outcome.plan, scores, pruning, step)));
  }
  return outcome;
}

}  // namespace qpruner::engine
