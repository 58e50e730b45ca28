// Small random models and token batches, for tests.
#ifndef QPRUNER_WORKER_ENGINE_GRADIENT_RANDOM_MODEL_H_
#define QPRUNER_WORKER_ENGINE_GRADIENT_RANDOM_MODEL_H_

#include <cstdint>
#include <vector>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

struct RandomModelOptions {
  int64_t blocks = 3;
  int64_t vocab = 40;
  int64_t hidden = 16;
  int64_t head_dim = 4;
  int64_t heads = 6;
  int64_t kv_heads = 3;
  int64_t intermediate = 24;
  bool biases = true;  // Of query, key, value and output.
  at::ScalarType dtype = at::kFloat;
  uint64_t seed = 1;
};

MemoryWeightSource RandomModel(const RandomModelOptions& options = {});

// Sequences of the given lengths, as one batch padded on the right with 0.
TokenBatch RandomBatch(const std::vector<int64_t>& lengths, int64_t vocab, uint64_t seed);

// Each row of `batch` as a batch of its own, without padding.
std::vector<TokenBatch> SplitRows(const TokenBatch& batch);

// The logits [batch, length, vocab] of a plain forward pass, with an optional LinearFunction.
// Differentiable.
at::Tensor Logits(WeightSource& source, const at::Tensor& ids,
                  const LinearFunction& linear = PlainLinear);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_GRADIENT_RANDOM_MODEL_H_
