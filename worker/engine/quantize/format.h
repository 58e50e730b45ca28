// Storage formats of a linear weight: exact byte accounting, quantization, dequantization.
//
// Every format stores round-to-nearest codes of a weight matrix [rows, cols] in real packed bytes:
//
//   nf4          4-bit NormalFloat (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), as bitsandbytes
//                stores it: the matrix is flattened row-major and cut into blocks of 64 that may
//                cross rows. `codes` [ceil(n / 2)] uint8, two codes a byte, the even element in the
//                high nibble; `absmax` [ceil(n / 64)] float32. 4.5 bits a weight.
//   int4-groupG  Asymmetric 4-bit integers with one scale and zero point for each G weights along a
//                row (G = 32, 64, 128; a row's last group may be shorter). w = (code - zero) scale.
//                `codes` [rows, ceil(cols / 2)] uint8 and `zero_point` [rows, ceil(groups / 2)]
//                uint8, two a byte, the even one in the high nibble, rows start on a byte; `scale`
//                [rows, groups] bfloat16. G = 64: 4.3125 bits a weight.
//   int8-row     LLM.int8's weights (Dettmers et al. 2022, arXiv 2208.07339), as bitsandbytes
//   stores
//                them: `codes` [rows, cols] int8, `SCB` [rows] float32, the row's absmax.
//                w = code SCB / 127.
//   bfloat16     `weight` [rows, cols] bfloat16.
//
// nf4 and int8-row give the codes, scales and dequantized values of bitsandbytes 0.50's CPU path
// bit for bit, including what is arbitrary there: see format.cc.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

enum class FormatKind { kNf4, kInt4Group, kInt8Row, kBfloat16 };

// Weights that share one absmax.
inline constexpr int64_t kNf4BlockSize = 64;

struct Format {
  FormatKind kind = FormatKind::kBfloat16;
  int64_t group_size = 64;  // kInt4Group: weights a group along a row. Others: left at 64.

  bool operator==(const Format&) const = default;
};

// "nf4", "int4-group64", "int8-row", "bfloat16".
std::string FormatName(const Format& format);
// The inverse. INVALID_ARGUMENT lists the names there are.
absl::StatusOr<Format> ParseFormatName(absl::string_view name);
// 4, 8 or 16.
int NominalBits(const Format& format);

// One tensor of a packed weight.
struct PackedTensorLayout {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;

  int64_t bytes() const;
};
// The tensors that a [rows, cols] weight is stored as, by name.
std::vector<PackedTensorLayout> PackedLayout(const Format& format, int64_t rows, int64_t cols);
// Their bytes together: what the weight costs, scales and zero points included.
int64_t PackedBytes(const Format& format, int64_t rows, int64_t cols);

// A quantized weight as it is stored.
struct PackedWeight {
  Format format;
  int64_t rows = 0;
  int64_t cols = 0;
  // As in PackedLayout. On the CPU, contiguous.
  std::map<std::string, at::Tensor> tensors;

  int64_t bytes() const;  // == PackedBytes(format, rows, cols)
};

// Round-to-nearest. weight [rows, cols] of a floating dtype, on any device; the work is done on the
// CPU, on all of LibTorch's threads. float64 is rounded to float32 first. Throws c10::Error for an
// empty weight or an unknown group size, and where a value is not finite (or, for int8-row, not
// finite in float16, which that format's scales are computed in); the message names the position.
PackedWeight Quantize(const at::Tensor& weight, const Format& format);

// [rows, cols] of `dtype` on `device`: computed in float32 and rounded once to `dtype`. What every
// engine that loads the format computes with.
at::Tensor Dequantize(const PackedWeight& packed, at::ScalarType dtype, at::Device device);

// The 16 values of NF4, as bitsandbytes rounds them to float32.
extern const std::array<float, 16> kNf4Values;

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_
