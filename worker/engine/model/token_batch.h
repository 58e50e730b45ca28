// Token sequences as the engine's walks take them: padded on the right to a common length.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_TOKEN_BATCH_H_
#define QPRUNER_WORKER_ENGINE_MODEL_TOKEN_BATCH_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace qpruner::engine {

struct TokenBatch {
  // In `targets`: nothing is predicted here.
  static constexpr int64_t kNoTarget = -100;

  at::Tensor ids;                // [batch, length] int64, CPU
  at::Tensor targets;            // [batch, length] int64, CPU: the next token, or kNoTarget
  std::vector<int64_t> lengths;  // Tokens of each sequence before its padding.

  // Positions that have a target.
  int64_t predicted_count() const;
};

// One batch of all `sequences` (none of them empty), padded to the longest.
TokenBatch MakeTokenBatch(const std::vector<std::vector<int64_t>>& sequences);

// The same in batches of `batch_size`, in order; the last may be smaller.
std::vector<TokenBatch> MakeTokenBatches(const std::vector<std::vector<int64_t>>& sequences,
                                         int64_t batch_size);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_TOKEN_BATCH_H_
