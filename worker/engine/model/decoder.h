// The forward pass of a Llama-family decoder, block by block.
//
// Free functions over explicit weights: the same code serves plain forward, scoring under autograd
// and calibration hooks, because each linear goes through a LinearFunction. It is also the plain
// reference of evaluation's packed blocks (packed_block.h) and of training
// (finetune/adapted_block.h).
#ifndef QPRUNER_WORKER_ENGINE_MODEL_DECODER_H_
#define QPRUNER_WORKER_ENGINE_MODEL_DECODER_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "worker/engine/model/model_config.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// y = f(kind, x, weight, bias) with x [.., in], weight [out, in], bias [out] or undefined, y [..,
// out].
using LinearFunction = std::function<at::Tensor(LinearKind, const at::Tensor& x,
                                                const at::Tensor& weight, const at::Tensor& bias)>;

// x W^T + b.
at::Tensor PlainLinear(LinearKind kind, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& bias);

// Rotary tables for positions 0 .. length - 1.
struct RotaryTables {
  at::Tensor cos;  // [length, head_dim]
  at::Tensor sin;  // [length, head_dim]
};
RotaryTables MakeRotaryTables(const ModelConfig& config, int64_t length, at::Device device,
                              at::ScalarType dtype);

// Heads narrower than this are padded with zeros: products with an inner width of 8 are so slow on
// CPUs that twice the width takes two thirds of the time (stories260k, forward and backward).
inline constexpr int64_t kNarrowestHead = 16;

// hidden [batch, length, hidden] -> the same shape. Causal; sequences are padded on the right, so
// padding never reaches a real position. Differentiable in hidden and in all weights.
at::Tensor BlockForward(const ModelConfig& config, const BlockShape& shape,
                        const BlockWeights& weights, const RotaryTables& rotary,
                        const at::Tensor& hidden, const LinearFunction& linear = PlainLinear);

// x [.., n] / rms(x) * weight, computed in float32.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// ids [batch, length] int64, on any device -> embeddings [batch, length, hidden] of source.dtype().
at::Tensor Embed(WeightSource& source, const at::Tensor& ids);

// rows [n, hidden], after the final norm -> logits [n, vocab] of the rows' dtype. A head of another
// dtype is converted a few rows at a time: it is never there twice.
at::Tensor HeadLogits(const at::Tensor& rows, const at::Tensor& head);
// The transpose: gradient [n, vocab] of the logits -> [n, hidden] of the rows, of its dtype.
at::Tensor HeadLogitsBackward(const at::Tensor& gradient, const at::Tensor& head);

// Runs all blocks of `source` over each of `batches` (ids [batch, length]), block-major: a block is
// loaded once and applied to every batch, so device memory is one block plus activations. Returns
// the final hidden states after the final norm, one [batch, length, hidden] each, on the CPU and
// not to be written to: what waits between blocks, and the result, is a HostStore's.
// `on_block_done(block)` is called after each block (progress); may be empty.
std::vector<at::Tensor> ForwardHidden(WeightSource& source, const std::vector<at::Tensor>& batches,
                                      const std::function<void(int64_t block)>& on_block_done = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_DECODER_H_
