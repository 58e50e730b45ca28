// Forward passes that begin where another one has been, and that can be watched on their way.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_FORWARD_WALK_H_
#define QPRUNER_WORKER_ENGINE_MODEL_FORWARD_WALK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// What a block takes in: one [batch, length, hidden] for each batch, on the CPU. Never written to
// once it is handed out.
struct BlockInputs {
  int64_t block = 0;
  std::vector<at::Tensor> hidden;  // Empty, at block 0: the embeddings.
};

// As ForwardHidden (decoder.h), from `start` on. `on_inputs(inputs)` before each block but the
// first one of the walk; may be empty.
std::vector<at::Tensor> ForwardHiddenFrom(WeightSource& source,
                                          const std::vector<at::Tensor>& batches, BlockInputs start,
                                          const std::function<void(const BlockInputs&)>& on_inputs,
                                          const std::function<void(int64_t block)>& on_block_done);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_FORWARD_WALK_H_
