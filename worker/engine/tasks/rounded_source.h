// A model after its weights are written in a smaller type and read back.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_ROUNDED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_TASKS_ROUNDED_SOURCE_H_

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// For the perplexity of an export as it is written. Of the device and dtype of its base.
class RoundedSource final : public WeightSource {
 public:
  // `base` must outlive this.
  RoundedSource(WeightSource& base, at::ScalarType stored) : base_(base), stored_(stored) {}

  const ModelConfig& config() const override { return base_.config(); }
  at::Device device() const override { return base_.device(); }
  at::ScalarType dtype() const override { return base_.dtype(); }
  BlockWeights Block(int64_t block) override;
  at::Tensor Embedding() override { return Rounded(base_.Embedding()); }
  at::Tensor FinalNorm() override { return Rounded(base_.FinalNorm()); }
  at::Tensor Head() override { return Rounded(base_.Head()); }

 private:
  at::Tensor Rounded(const at::Tensor& tensor) const;

  WeightSource& base_;
  const at::ScalarType stored_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_ROUNDED_SOURCE_H_
