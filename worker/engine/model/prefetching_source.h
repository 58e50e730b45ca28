// Loads the next block while one is in work.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_PREFETCHING_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_PREFETCHING_SOURCE_H_

#include <future>
#include <memory>

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Walks go up or down the blocks, so the next one is known: it is read, converted and copied to the
// device on a thread of its own. Two blocks exist at a time. Not thread-safe, as all sources;
// `base` is only ever used by one thread at a time.
class PrefetchingSource final : public WeightSource {
 public:
  explicit PrefetchingSource(std::unique_ptr<WeightSource> base);
  ~PrefetchingSource() override;

  const ModelConfig& config() const override { return base_->config(); }
  at::Device device() const override { return base_->device(); }
  at::ScalarType dtype() const override { return base_->dtype(); }
  BlockWeights Block(int64_t block) override;
  // Not ahead, for the linears that are wanted of one block say nothing of the next.
  BlockWeights BlockWith(const LinearSet& wanted, int64_t block) override;
  at::Tensor Embedding() override { return Idle().Embedding(); }
  at::Tensor FinalNorm() override { return Idle().FinalNorm(); }
  at::Tensor Head() override { return Idle().Head(); }

 private:
  // The base, when the thread is done with it.
  WeightSource& Idle();

  const std::unique_ptr<WeightSource> base_;
  int64_t last_ = -1;  // The block that was asked for last.
  int64_t next_ = -1;  // The block that is on its way.
  std::future<BlockWeights> loading_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_PREFETCHING_SOURCE_H_
