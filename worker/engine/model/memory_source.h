// Weights held in memory: pruned or quantized models, and tests.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_MEMORY_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_MEMORY_SOURCE_H_

#include <vector>

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Hands out the tensors it was given; nothing is copied.
class MemoryWeightSource : public WeightSource {
 public:
  // `head` may be undefined if config.tie_word_embeddings. Throws c10::Error if a shape does not
  // fit `config`, or if devices or dtypes differ.
  MemoryWeightSource(ModelConfig config, std::vector<BlockWeights> blocks, at::Tensor embedding,
                     at::Tensor final_norm, at::Tensor head = {});

  const ModelConfig& config() const override { return config_; }
  at::Device device() const override { return embedding_.device(); }
  at::ScalarType dtype() const override { return embedding_.scalar_type(); }
  BlockWeights Block(int64_t block) override { return blocks_.at(static_cast<size_t>(block)); }
  at::Tensor Embedding() override { return embedding_; }
  at::Tensor FinalNorm() override { return final_norm_; }
  at::Tensor Head() override { return head_.defined() ? head_ : embedding_; }

 private:
  ModelConfig config_;
  std::vector<BlockWeights> blocks_;
  at::Tensor embedding_;
  at::Tensor final_norm_;
  at::Tensor head_;
};

// All weights of `source`, loaded now. Needs memory for the whole model.
MemoryWeightSource LoadIntoMemory(WeightSource& source);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_MEMORY_SOURCE_H_
