// What the linears of a model see: the second moments of their inputs over calibration text.
#ifndef QPRUNER_WORKER_ENGINE_CALIBRATE_INPUT_MOMENTS_H_
#define QPRUNER_WORKER_ENGINE_CALIBRATE_INPUT_MOMENTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Mean of x x^T over all tokens (padding left out), [in, in] float32 on the CPU. Linears with the
// same input (query, key and value; gate and up) share one tensor.
using InputMoments = PerLinear<at::Tensor>;

// Runs `source` over `batches`, a block at a time, and calls visit(block, its weights, its moments)
// for each block in order, from `first_block` on; those before are only computed. All inputs are
// those of `source` as it is: no block sees what a change of an earlier one would do. Memory: one
// block and its moments; the hidden states of all samples wait in a HostStore.
void WalkInputMoments(WeightSource& source, const std::vector<TokenBatch>& batches,
                      const std::function<void(int64_t block, const BlockWeights& weights,
                                               const InputMoments& moments)>& visit,
                      const std::function<void(double fraction)>& on_progress = {},
                      int64_t first_block = 0);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_CALIBRATE_INPUT_MOMENTS_H_
