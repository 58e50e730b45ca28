// The forward pass of a decoder block for inference in bfloat16 on the CPU, where BlockForward's
// plain operators leave a third of the time outside of the matrix products.
//
// Query, key and value are one product, gate and up two with SiLU, the product of both and the
// residual sums fused into them, all on weights in oneDNN's own order; attention goes over blocks
// of positions that see no later key, reads each key/value head once for all its query heads, and
// sums in float32 within a row. Only rounding differs from BlockForward.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_PACKED_BLOCK_H_
#define QPRUNER_WORKER_ENGINE_MODEL_PACKED_BLOCK_H_

#include <ATen/core/Tensor.h>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Whether a model of this device and dtype can take this way: bfloat16 on a CPU that has bfloat16
// products, with a LibTorch that has oneDNN.
bool CanPackBlocks(at::Device device, at::ScalarType dtype);

// A block's weights, put in order for `tokens` tokens at a time (any number works). Costs about as
// much as reading the weights twice, so it pays from some hundred tokens on.
class PackedBlock {
 public:
  PackedBlock(const ModelConfig& config, const BlockShape& shape, const BlockWeights& weights,
              int64_t tokens);

  // As BlockForward: hidden [batch, length, hidden] bfloat16. `rotary` is float32.
  at::Tensor Forward(const RotaryTables& rotary, const at::Tensor& hidden) const;

 private:
  struct Linear {
    at::Tensor weight;  // In oneDNN's order.
    at::Tensor bias;    // Or undefined.
  };
  static Linear Pack(const at::Tensor& weight, const at::Tensor& bias, int64_t tokens);
  at::Tensor Attend(const RotaryTables& rotary, const at::Tensor& projection, int64_t batch,
                    int64_t length) const;

  const ModelConfig& config_;
  const BlockShape shape_;
  at::Tensor attention_norm_, mlp_norm_, query_norm_, key_norm_;
  Linear projection_;  // Query, key, value.
  Linear output_, gate_, up_, down_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_PACKED_BLOCK_H_
