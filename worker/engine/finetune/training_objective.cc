#include "worker/engine/finetune/training_objective.h"

#include <ATen/ATen.h>

namespace qpruner::engine {

TrainingBatch PlainBatch(const TokenBatch& batch) {
  return {.ids = batch.ids, .targets = NextTokenTargets(batch)};
}

LossSum CrossEntropyObjective::Evaluate(const TrainingBatch& batch, const at::Tensor& hidden,
                                        const at::Tensor& head, at::Tensor* gradient) const {
  return NextTokenLoss(hidden, head, batch.targets, gradient);
}

}  // namespace qpruner::engine
