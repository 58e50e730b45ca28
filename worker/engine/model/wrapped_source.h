// A source around another.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_WRAPPED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_WRAPPED_SOURCE_H_

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Passes on what the other gives, but for its blocks. Derived classes replace what they change.
class WrappedSource : public WeightSource {
 public:
  // `base` must outlive this.
  explicit WrappedSource(WeightSource& base) : base_(base) {}
  // A copy would wrap what the other wraps, where wrapping the other is meant.
  WrappedSource(const WrappedSource&) = delete;

  const ModelConfig& config() const override { return base_.config(); }
  at::Device device() const override { return base_.device(); }
  at::ScalarType dtype() const override { return base_.dtype(); }
  at::Tensor Embedding() override { return base_.Embedding(); }
  at::Tensor FinalNorm() override { return base_.FinalNorm(); }
  at::Tensor Head() override { return base_.Head(); }

 protected:
  WeightSource& base() const { return base_; }

 private:
  WeightSource& base_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_WRAPPED_SOURCE_H_
