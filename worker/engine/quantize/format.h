// Storage formats of a linear weight: exact byte accounting, quantization, dequantization.
//
// Every format stores codes of a weight matrix [rows, cols] in real packed bytes:
//
//   nf2 nf3 nf4 nf8 fp4   Codes of a table of values (codebooks.h): NormalFloat (QLoRA, Dettmers et
//                         al. 2023, arXiv 2305.14314; NF2, NF3, NF8 as in LoftQ, Li et al. 2023,
//                         arXiv 2310.08659) and bitsandbytes' FP4. The matrix is flattened
//                         row-major and cut into blocks of 64 that may cross rows. `codes`
//                         [ceil(n bits / 8)] uint8: 4-bit ones two a byte, the even element in the
//                         high nibble (bitsandbytes), the others a little-endian bit stream;
//                         `absmax` [ceil(n / 64)] float32. bits + 0.5 bits a weight.
//   nf4-dq fp4-dq         The same with double quantization, as bitsandbytes stores it: `absmax` is
//                         uint8 [blocks], codes of the dynamic map; `nested_absmax`
//                         [ceil(blocks / 256)] float32; `offset` [1] float32, the mean of the
//                         absmax values. 4.127 bits a weight.
//   intB-groupG           B-bit integers, B = 2..8, with a scale and a zero point for each G of the
//                         weights along a row (G = 32, 64, 128; a row's last group may be shorter).
//                         w = (code - zero_point) scale. `codes` [rows, ceil(cols B / 8)] and
//                         `zero_point` [rows, ceil(groups B / 8)] uint8, each row a little-endian
//                         bit stream; `scale` [rows, groups] bfloat16. int4-group64: 4.3125 bits.
//   intB-sym-groupG       The same without `zero_point`: it is 2^(B-1). int4-sym-group64: 4.25.
//   int8-row              LLM.int8's weights (Dettmers et al. 2022, arXiv 2208.07339), as
//                         bitsandbytes stores them: `codes` [rows, cols] int8, `SCB` [rows]
//                         float32, the row's absmax. w = code SCB / 127.
//   bfloat16              `weight` [rows, cols] bfloat16.
//
// Codes, scales and values are those of the libraries named, bit for bit, including what is
// arbitrary there: see codebook_kernels.h and integer_kernels.h.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

enum class FormatKind { kNormalFloat, kFloat4, kIntegerGroup, kInteger8Row, kBfloat16 };

// Make one with a factory below; fields that a kind does not have keep their defaults, so that
// equal formats are equal.
struct Format {
  FormatKind kind = FormatKind::kBfloat16;
  int bits = 16;           // Of a code; the nominal width.
  int64_t group_size = 0;  // kIntegerGroup: weights that share a scale along a row.
  bool symmetric = false;  // kIntegerGroup: no zero points.
  bool double_quantized =
      false;  // kNormalFloat of 4 bits, kFloat4: the absmax values are codes too.

  bool operator==(const Format&) const = default;

  static Format NormalFloat(int bits, bool double_quantized = false) {
    return {.kind = FormatKind::kNormalFloat, .bits = bits, .double_quantized = double_quantized};
  }
  static Format Float4(bool double_quantized = false) {
    return {.kind = FormatKind::kFloat4, .bits = 4, .double_quantized = double_quantized};
  }
  static Format IntegerGroup(int bits, int64_t group_size, bool symmetric = false) {
    return {.kind = FormatKind::kIntegerGroup,
            .bits = bits,
            .group_size = group_size,
            .symmetric = symmetric};
  }
  static Format Integer8Row() { return {.kind = FormatKind::kInteger8Row, .bits = 8}; }
  static Format Bfloat16() { return {}; }
};

// Every format there is.
const std::vector<Format>& AllFormats();
// "nf4", "fp4-dq", "int4-group64", "int8-sym-group128", "int8-row", "bfloat16", ...
std::string FormatName(const Format& format);
// The inverse, for the names of AllFormats. INVALID_ARGUMENT describes the names there are.
absl::StatusOr<Format> ParseFormatName(absl::string_view name);

// One tensor of a packed weight.
struct PackedTensorLayout {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;

  int64_t bytes() const;
};
// The tensors that a [rows, cols] weight is stored as, by name. Throws c10::Error for a format that
// is not in AllFormats.
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
// empty weight or an unknown format, and where a value is not finite (or, for int8-row, not finite
// in float16, which that format's scales are computed in); the message names the position.
PackedWeight Quantize(const at::Tensor& weight, const Format& format);

// [rows, cols] of `dtype` on `device`: computed in float32 and rounded once to `dtype`. What every
// engine that loads the format computes with.
at::Tensor Dequantize(const PackedWeight& packed, at::ScalarType dtype, at::Device device);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_FORMAT_H_
