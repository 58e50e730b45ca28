// Dropout of the adapters' inputs (Hu et al. 2021, arXiv 2106.09685, as PEFT places it):
// y = x W^T + scale dropout(x) A^T B^T, another mask for each linear.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_DROPOUT_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_DROPOUT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/engine/model/linear_kind.h"

namespace qpruner::engine {

// The masks of one block over one batch in one training step. A mask is a function of (seed, step,
// sequence, position, block, linear, feature) alone, no stream of random numbers: so the backward
// pass makes it again, a resumed run goes on as if it had never stopped, and neither the number of
// threads nor the size of micro-batches changes it.
struct AdapterDropout {
  double probability = 0;  // [0, 1): of an element becoming 0. The others are scaled up.
  uint64_t seed = 42;
  int64_t step = 0;
  int64_t first_sequence = 0;  // Of the batch, among the step's sequences.
  int64_t length = 0;          // Tokens a sequence of the batch.
  int64_t block = 0;

  // x [rows, width] -> dropped [rows, width]: x / (1 - probability) or 0.
  at::Tensor Apply(LinearKind kind, const at::Tensor& x) const;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_DROPOUT_H_
