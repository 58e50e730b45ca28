// A model without the heads and channels that a plan drops.
#ifndef QPRUNER_WORKER_ENGINE_PRUNE_PRUNED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_PRUNE_PRUNED_SOURCE_H_

#include "worker/engine/model/wrapped_source.h"
#include "worker/engine/prune/pruning_plan.h"

namespace qpruner::engine {

// One block, of `shape`, without what `kept` leaves out. Nothing is copied that stays whole.
BlockWeights PruneBlock(const ModelConfig& config, const BlockShape& shape, BlockWeights weights,
                        const BlockPlan& kept);

// Rows and columns are deleted as blocks are asked for; nothing is copied ahead.
class PrunedSource final : public WrappedSource {
 public:
  // `base` must outlive this. `plan` must have been made for base.config().
  PrunedSource(WeightSource& base, PruningPlan plan);

  const ModelConfig& config() const override { return config_; }
  BlockWeights Block(int64_t block) override;

 private:
  const PruningPlan plan_;
  ModelConfig config_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_PRUNE_PRUNED_SOURCE_H_
