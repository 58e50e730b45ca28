// x W^T straight from packed weights, by ATen's CPU kernels for 4- and 8-bit weights: what latency
// is measured with (bench/low_bit_bench.cc). Quality is measured on dequantized weights, in
// float32.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_LOW_BIT_LINEAR_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_LOW_BIT_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

// One linear prepared for a kernel. Immutable and thread-safe.
class LowBitLinear {
 public:
  // int4-group32, 64 and 128 (symmetric or not; rows of whole groups, a multiple of 16 of them):
  // _weight_int4pack_mm. int8-row: _weight_int8pack_mm. bfloat16: a plain product.
  // UNIMPLEMENTED names the format or shape that no kernel takes.
  static absl::StatusOr<LowBitLinear> Create(const PackedWeight& packed);

  // x [tokens, cols] bfloat16 -> [tokens, rows] bfloat16.
  at::Tensor operator()(const at::Tensor& x) const;

  // Of what the kernel reads.
  int64_t bytes() const;

 private:
  LowBitLinear() = default;

  FormatKind kind_ = FormatKind::kBfloat16;
  int64_t group_size_ = 0;
  at::Tensor weight_;
  at::Tensor scales_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_LOW_BIT_LINEAR_H_
