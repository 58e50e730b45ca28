// One decoder block with its adapter, forward and backward written out.
//
// Only A and B are trained, so the backward pass computes the gradient of the block's input and of
// A and B, and nothing else. Against automatic differentiation this saves memory traffic: linears
// that read the same input are one matrix product with the A's stacked under the weights (so x A^T
// and the low-rank part of the input's gradient cost no pass of their own), what lies between the
// products is fused (block_kernels.h), and buffers are used again at every step.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTED_BLOCK_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTED_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

#include "worker/engine/finetune/adapter_dropout.h"
#include "worker/engine/finetune/block_kernels.h"
#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// The linears of a block that read the same input.
enum class LinearStackKind { kQueryKeyValue, kOutput, kGateUp, kDown };
inline constexpr int kLinearStackCount = 4;

// What the backward pass of one block needs of its forward pass over one batch. Plain buffers, used
// again when it is passed to another forward pass of the same shape.
struct BlockTape {
  int64_t batch = 0;
  int64_t length = 0;
  at::Tensor input;                                 // [rows, hidden]
  at::Tensor attention_rms, mlp_rms;                // [rows]
  std::array<at::Tensor, kLinearStackCount> read;   // Input of each stack: [rows, in]
  std::array<at::Tensor, kLinearStackCount> wrote;  // Its output, [outputs | x A^T]
  at::Tensor query_rms, key_rms;                    // With query and key norms: [rows * heads]
  at::Tensor query, key, value;                     // As attention takes them.
  at::Tensor attention, log_sum_exp;                // Of attention.
  at::Tensor residual;                              // [rows, hidden] after attention.
  at::Tensor sigmoid;                               // [rows, mlp]

  int64_t bytes() const;
};

// Buffers of the backward pass that do not outlive it.
struct BackwardBuffers {
  std::array<at::Tensor, kLinearStackCount> wrote_gradient;
  std::array<at::Tensor, kLinearStackCount> read_gradient;
};

// Sums of gradients of one block: float32 [rank, in] and [out, rank]; undefined where there is no
// adapter.
struct BlockGradients {
  PerLinear<at::Tensor> a;
  PerLinear<at::Tensor> b;
};

// Not thread-safe.
class AdaptedBlock {
 public:
  // Takes copies of the weights (stacked, in `dtype`). `config` and `shape` must outlive it.
  AdaptedBlock(const ModelConfig& config, const BlockShape& shape, const BlockWeights& weights,
               at::ScalarType dtype);

  // Takes A and B of `block`. Must be called before the first pass and after every change of them;
  // which linears are adapted must not change.
  void SetAdapter(const LoraAdapter& adapter, int64_t block);

  // hidden [batch, length, hidden] in dtype -> the same shape, a new tensor. Fills `tape`.
  // `dropout`: of the adapters' inputs; null: none.
  at::Tensor Forward(const at::Tensor& hidden, const RotaryTables& rotary,
                     const AdapterDropout* dropout, BlockTape& tape) const;

  // dL/doutput [batch, length, hidden] -> dL/dhidden, a new tensor; adds to `sums`. `tape` and
  // `dropout` as of the forward pass.
  at::Tensor Backward(const at::Tensor& output_gradient, const RotaryTables& rotary,
                      const AdapterDropout* dropout, const BlockTape& tape,
                      BackwardBuffers& buffers, BlockGradients& sums) const;

 private:
  struct Member {
    LinearKind kind;
    int64_t first = 0;  // Its first column in the stack's output.
    int64_t out = 0;
    int64_t first_low = -1;  // First column of its x A^T; -1: no adapter.
    at::Tensor base;         // [out, in], until it has moved to the stack.
    at::Tensor a, b;         // In dtype.
  };
  struct Stack {
    std::vector<Member> members;
    at::Tensor weight;  // [outputs + low, in]: the weights, then the A's
    at::Tensor bias;    // [outputs + low] or undefined
    int64_t outputs = 0;
    int64_t low = 0;
  };

  void ForwardStack(LinearStackKind kind, const AdapterDropout* dropout, BlockTape& tape) const;
  // Reads the first `outputs` columns of buffers.wrote_gradient, fills the others, and leaves the
  // input's gradient in buffers.read_gradient.
  void BackwardStack(LinearStackKind kind, const AdapterDropout* dropout, const BlockTape& tape,
                     BackwardBuffers& buffers, BlockGradients& sums) const;
  ProjectionLayout QueryLayout(const BlockTape& tape) const;
  ProjectionLayout KeyLayout(const BlockTape& tape) const;

  const ModelConfig& config_;
  const BlockShape& shape_;
  std::array<Stack, kLinearStackCount> stacks_;
  at::Tensor attention_norm_, mlp_norm_, query_norm_, key_norm_;
  double scale_ = 0;
  int64_t rank_ = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTED_BLOCK_H_
