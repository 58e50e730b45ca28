// Storage formats of a linear weight: exact byte accounting, quantization, dequantization.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace qpruner::engine {

enum class FormatKind { kNf4, kInt4Group, kInt8Row, kBfloat16 };

struct Format {
  FormatKind kind = FormatKind::kBfloat16;
  int64_t group_size = 64;  // kInt4Group: weights a group along a row. kNf4: block, always 64.

  bool operator==(const Format&) const = default;
};

// "nf4", "int4-group64", "int8-row", "bfloat16".
std::string FormatName(const Format& format);
// 4, 8 or 16.
int NominalBits(const Format& format);
// Bytes that PackedWeight stores for a [rows, cols] weight, exactly.
int64_t PackedBytes(const Format& format, int64_t rows, int64_t cols);

// A quantized weight as it is stored: real packed bytes.
struct PackedWeight {
  Format format;
  int64_t rows = 0;
  int64_t cols = 0;
  // Named as the packed file stores them, e.g. "codes", "absmax", "scale", "zero_point". CPU.
  std::map<std::string, at::Tensor> tensors;

  int64_t bytes() const;  // == PackedBytes(format, rows, cols)
};

// Round-to-nearest. weight [rows, cols] of a floating dtype. Throws c10::Error on non-finite
// weights.
PackedWeight Quantize(const at::Tensor& weight, const Format& format);
// [rows, cols] of `dtype` on `device`. What every engine that loads the format computes with.
at::Tensor Dequantize(const PackedWeight& packed, at::ScalarType dtype, at::Device device);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_
