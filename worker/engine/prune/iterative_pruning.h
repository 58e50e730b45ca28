// Pruning in steps, with the scores measured again on what is left (LLM-Pruner's
// --iterative_steps).
#ifndef QPRUNER_WORKER_ENGINE_PRUNE_ITERATIVE_PRUNING_H_
#define QPRUNER_WORKER_ENGINE_PRUNE_ITERATIVE_PRUNING_H_

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruning_plan.h"

namespace qpruner::engine {

struct PruningOutcome {
  PruningPlan plan;
  // Of all of the model's groups: what each scored when it was last looked at.
  std::vector<BlockImportance> importance;
};

// Step k of n removes up to k / n of pruning.ratio of the original groups (linear schedule). One
// step is plain pruning. `batches` as in ScoreGroups; kRandom draws again in each step.
// INVALID_ARGUMENT: as MakePruningPlan.
absl::StatusOr<PruningOutcome> PruneInSteps(WeightSource& source,
                                            const std::vector<TokenBatch>& batches,
                                            const ImportanceOptions& importance,
                                            const PruningOptions& pruning,
                                            const std::function<void(double)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_PRUNE_ITERATIVE_PRUNING_H_
