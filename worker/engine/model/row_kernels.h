// Loops over bfloat16 rows that LibTorch has no single operator for: each reads and writes its row
// once, in float32 registers. For inference on the CPU; packed_block.h puts them together, and its
// test holds them to the plain operators.
//
// Vectorized for the machine at hand (function clones); threads as LibTorch has them.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_ROW_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_MODEL_ROW_KERNELS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace qpruner::engine {

// All tensors are contiguous bfloat16 on the CPU unless said otherwise.

// x [rows, width] / rms(x) * weight [width]. RmsNorm rounds before the weight is multiplied; this
// rounds once.
at::Tensor RmsNormRows(const at::Tensor& x, const at::Tensor& weight, double eps);

// Shape of a fused query/key/value projection: [tokens, (heads + 2 * kv_heads) * head_dim].
struct HeadLayout {
  int64_t batch = 0;
  int64_t length = 0;
  int64_t kv_heads = 0;
  int64_t group = 0;  // Query heads of each key/value head.
  int64_t head_dim = 0;
};

// Queries of one key/value head side by side, so that attention reads each key once for all of
// them.
struct AttentionInputs {
  at::Tensor
      query;       // [batch * kv_heads, length * group, head_dim], rotated, times 1/sqrt(head_dim)
  at::Tensor key;  // [batch * kv_heads, length, head_dim], rotated
  at::Tensor value;  // [batch * kv_heads, length, head_dim]
};

// Splits a fused projection. cos, sin: [>= length, head_dim] float32. query_norm, key_norm
// [head_dim]: RMS norm of each head before the rotation; undefined: none.
AttentionInputs SplitProjection(const at::Tensor& projection, const HeadLayout& layout,
                                const at::Tensor& cos, const at::Tensor& sin,
                                const at::Tensor& query_norm, const at::Tensor& key_norm,
                                double eps);

// In place: scores [matrices, positions * group, keys] of the positions from `first` on; row r
// belongs to position first + r / group and sees the keys up to that position. What it does not see
// becomes 0, the others exp(score - max). Returns 1 / sum of each row, float32
// [matrices, positions * group].
at::Tensor CausalExp(const at::Tensor& scores, int64_t first, int64_t group);

// out [batch, length, kv_heads * group * head_dim] at the positions from `first` on: `weighted`
// [batch * kv_heads, positions * group, head_dim] times `scale` (CausalExp's).
void MergeHeads(const at::Tensor& weighted, const at::Tensor& scale, const HeadLayout& layout,
                int64_t first, const at::Tensor& out);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_ROW_KERNELS_H_
