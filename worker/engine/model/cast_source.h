// A model computed in another dtype.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_CAST_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_CAST_SOURCE_H_

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Gives the weights of another source in `dtype`. A source that computes in `dtype` already is
// passed on as it is, its embedding and head in the type they are stored in.
class CastSource final : public WeightSource {
 public:
  // `base` must outlive this.
  CastSource(WeightSource& base, at::ScalarType dtype) : base_(base), dtype_(dtype) {}

  const ModelConfig& config() const override { return base_.config(); }
  at::Device device() const override { return base_.device(); }
  at::ScalarType dtype() const override { return dtype_; }
  BlockWeights Block(int64_t block) override { return Cast(base_.Block(block)); }
  BlockWeights BlockWith(const LinearSet& wanted, int64_t block) override {
    return Cast(base_.BlockWith(wanted, block));
  }
  at::Tensor Embedding() override { return Cast(base_.Embedding()); }
  at::Tensor FinalNorm() override { return Cast(base_.FinalNorm()); }
  at::Tensor Head() override { return Cast(base_.Head()); }

 private:
  at::Tensor Cast(const at::Tensor& tensor) const;
  BlockWeights Cast(BlockWeights weights) const;

  WeightSource& base_;
  const at::ScalarType dtype_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_CAST_SOURCE_H_
