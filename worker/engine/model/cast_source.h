// A model computed in another dtype.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_CAST_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_CAST_SOURCE_H_

#include "worker/engine/model/wrapped_source.h"

namespace qpruner::engine {

// Gives the weights of another source in `dtype`. A source that computes in `dtype` already is
// passed on as it is, its embedding and head in the type they are stored in.
class CastSource final : public WrappedSource {
 public:
  // `base` must outlive this.
  CastSource(WeightSource& base, at::ScalarType dtype) : WrappedSource(base), dtype_(dtype) {}

  at::ScalarType dtype() const override { return dtype_; }
  BlockWeights Block(int64_t block) override { return Cast(base().Block(block)); }
  BlockWeights BlockWith(const LinearSet& wanted, int64_t block) override {
    return Cast(base().BlockWith(wanted, block));
  }
  at::Tensor Embedding() override { return Cast(base().Embedding()); }
  at::Tensor FinalNorm() override { return Cast(base().FinalNorm()); }
  at::Tensor Head() override { return Cast(base().Head()); }

 private:
  at::Tensor Cast(const at::Tensor& tensor) const;
  BlockWeights Cast(BlockWeights weights) const;

  const at::ScalarType dtype_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_CAST_SOURCE_H_
