// A base with its adapter merged: W + scale B A for each linear.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_MERGED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_MERGED_SOURCE_H_

#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// For evaluation and export. The sum is computed in float32 and rounded once to the base's dtype.
class MergedSource final : public WeightSource {
 public:
  // Both must outlive this. The adapter must fit base.config().
  MergedSource(WeightSource& base, const LoraAdapter& adapter) : base_(base), adapter_(adapter) {}

  const ModelConfig& config() const override { return base_.config(); }
  at::Device device() const override { return base_.device(); }
  at::ScalarType dtype() const override { return base_.dtype(); }
  BlockWeights Block(int64_t block) override;
  at::Tensor Embedding() override { return base_.Embedding(); }
  at::Tensor FinalNorm() override { return base_.FinalNorm(); }
  at::Tensor Head() override { return base_.Head(); }

 private:
  WeightSource& base_;
  const LoraAdapter& adapter_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_MERGED_SOURCE_H_
