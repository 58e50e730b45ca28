#include "worker/engine/quantize/format.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/engine/quantize/pack_kernels.h"

namespace qpruner::engine {
namespace {

constexpr std::array<int64_t, 3> kInt4GroupSizes = {32, 64, 128};

// Elements a thread should at least get: below this, starting a thread costs more than it saves.
constexpr int64_t kElementsPerThread = 1 << 15;

constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

void CheckFormat(const Format& format) {
  if (format.kind == FormatKind::kInt4Group) {
    TORCH_CHECK_VALUE(std::find(kInt4GroupSizes.begin(), kInt4GroupSizes.end(),
                                format.group_size) != kInt4GroupSizes.end(),
                      "Group size of int4-group must be 32, 64 or 128, not ", format.group_size);
  }
}

// Throws for the first value of `values` that is not finite. `type` is what the values were rounded
// to, `original` the weight before that.
[[noreturn]] void RefuseNonFinite(const at::Tensor& values, const at::Tensor& original,
                                  const char* type) {
  const at::Tensor bad = at::nonzero(at::logical_not(at::isfinite(values)));
  const int64_t row = bad[0][0].item<int64_t>();
  const int64_t col = bad[0][1].item<int64_t>();
  TORCH_CHECK_VALUE(false, "Weight [", row, ", ", col, "] is ", original[row][col].item<double>(),
                    ", which is not finite in ", type, ": quantization needs finite weights");
}

// Checks `values` (float32, contiguous, on the CPU), strip by strip over all threads.
void CheckFinite(const at::Tensor& values, const at::Tensor& original, const char* type) {
  const float* data = values.const_data_ptr<float>();
  std::atomic<bool> finite = true;
  at::parallel_for(0, values.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    if (!AllFinite(data + begin, end - begin)) finite.store(false, std::memory_order_relaxed);
  });
  if (!finite) RefuseNonFinite(values, original, type);
}

at::Tensor Float32OnCpu(const at::Tensor& weight) {
  return weight.to(at::kCPU, at::kFloat).contiguous();
}

void QuantizeNf4(const at::Tensor& values, PackedWeight& packed) {
  const float* data = values.const_data_ptr<float>();
  const int64_t count = values.numel();
  uint8_t* codes = packed.tensors["codes"].mutable_data_ptr<uint8_t>();
  float* absmax = packed.tensors["absmax"].mutable_data_ptr<float>();
  const int64_t full_blocks = count / kNf4BlockSize;
  at::parallel_for(0, full_blocks, kElementsPerThread / kNf4BlockSize,
                   [&](int64_t begin, int64_t end) {
                     EncodeNf4Blocks(data + begin * kNf4BlockSize, end - begin,
                                     codes + begin * kNf4BlockSize / 2, absmax + begin);
                   });
  const int64_t rest = count - full_blocks * kNf4BlockSize;
  if (rest > 0) {
    absmax[full_blocks] = EncodeNf4Tail(data + full_blocks * kNf4BlockSize, rest,
                                        codes + full_blocks * kNf4BlockSize / 2);
  }
}

at::Tensor DequantizeNf4(const PackedWeight& packed) {
  at::Tensor result = at::empty({packed.rows, packed.cols}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  const uint8_t* codes = packed.tensors.at("codes").const_data_ptr<uint8_t>();
  const float* absmax = packed.tensors.at("absmax").const_data_ptr<float>();
  const int64_t count = packed.rows * packed.cols;
  at::parallel_for(0, CeilDivide(count, kNf4BlockSize), kElementsPerThread / kNf4BlockSize,
                   [&](int64_t begin, int64_t end) {
                     const int64_t first = begin * kNf4BlockSize;
                     DecodeNf4Blocks(codes + first / 2, absmax + begin,
                                     std::min(end * kNf4BlockSize, count) - first, out + first);
                   });
  return result;
}

void QuantizeInt8Row(const at::Tensor& values, PackedWeight& packed) {
  const float* data = values.const_data_ptr<float>();
  int8_t* codes = packed.tensors["codes"].mutable_data_ptr<int8_t>();
  float* absmax = packed.tensors["SCB"].mutable_data_ptr<float>();
  const int64_t cols = packed.cols;
  at::parallel_for(0, packed.rows, CeilDivide(kElementsPerThread, cols),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) {
                       absmax[row] = EncodeInt8Row(data + row * cols, cols, codes + row * cols);
                     }
                   });
}

at::Tensor DequantizeInt8Row(const PackedWeight& packed) {
  at::Tensor result = at::empty({packed.rows, packed.cols}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  const int8_t* codes = packed.tensors.at("codes").const_data_ptr<int8_t>();
  const float* absmax = packed.tensors.at("SCB").const_data_ptr<float>();
  const int64_t cols = packed.cols;
  at::parallel_for(0, packed.rows, CeilDivide(kElementsPerThread, cols),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) {
                       DecodeInt8Row(codes + row * cols, absmax[row], cols, out + row * cols);
                     }
                   });
  return result;
}

// Where row `row` of an int4-group weight lies.
struct Int4Row {
  uint8_t* codes;
  c10::BFloat16* scale;
  uint8_t* zero_point;
};

Int4Row RowOf(const PackedWeight& packed, int64_t row) {
  const int64_t groups = CeilDivide(packed.cols, packed.format.group_size);
  return {packed.tensors.at("codes").data_ptr<uint8_t>() + row * CeilDivide(packed.cols, 2),
          packed.tensors.at("scale").data_ptr<c10::BFloat16>() + row * groups,
          packed.tensors.at("zero_point").data_ptr<uint8_t>() + row * CeilDivide(groups, 2)};
}

void QuantizeInt4Group(const at::Tensor& values, PackedWeight& packed) {
  const float* data = values.const_data_ptr<float>();
  const int64_t cols = packed.cols;
  const int64_t group_size = packed.format.group_size;
  at::parallel_for(
      0, packed.rows, CeilDivide(kElementsPerThread, cols), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const float* weights = data + row * cols;
          const Int4Row to = RowOf(packed, row);
          for (int64_t first = 0, group = 0; first < cols; first += group_size, ++group) {
            const int64_t count = std::min(group_size, cols - first);
            const Int4Range range = RangeOf(weights + first, count);
            // What is stored decides the codes: they are nearest for the rounded scale.
            const c10::BFloat16 scale(range.step);
            const int zero = Int4ZeroPoint(range, scale);
            to.scale[group] = scale;
            if (group % 2 == 0) to.zero_point[group / 2] = 0;
            to.zero_point[group / 2] |= zero << (group % 2 == 0 ? 4 : 0);
            EncodeInt4Group(weights + first, count, scale, zero, to.codes + first / 2);
          }
        }
      });
}

at::Tensor DequantizeInt4Group(const PackedWeight& packed) {
  at::Tensor result = at::empty({packed.rows, packed.cols}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  const int64_t cols = packed.cols;
  const int64_t group_size = packed.format.group_size;
  at::parallel_for(
      0, packed.rows, CeilDivide(kElementsPerThread, cols), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const Int4Row from = RowOf(packed, row);
          for (int64_t first = 0, group = 0; first < cols; first += group_size, ++group) {
            const int zero = from.zero_point[group / 2] >> (group % 2 == 0 ? 4 : 0) & 0xF;
            DecodeInt4Group(from.codes + first / 2, std::min(group_size, cols - first),
                            from.scale[group], zero, out + row * cols + first);
          }
        }
      });
  return result;
}

}  // namespace

std::string FormatName(const Format& format) {
  switch (format.kind) {
    case FormatKind::kNf4:
      return "nf4";
    case FormatKind::kInt4Group:
      return absl::StrCat("int4-group", format.group_size);
    case FormatKind::kInt8Row:
      return "int8-row";
    case FormatKind::kBfloat16:
      return "bfloat16";
  }
  return "unknown";
}

absl::StatusOr<Format> ParseFormatName(absl::string_view name) {
  for (FormatKind kind : {FormatKind::kNf4, FormatKind::kInt8Row, FormatKind::kBfloat16}) {
    if (name == FormatName({.kind = kind})) return Format{.kind = kind};
  }
  for (int64_t group_size : kInt4GroupSizes) {
    const Format format{.kind = FormatKind::kInt4Group, .group_size = group_size};
    if (name == FormatName(format)) return format;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("No such weight format; there are nf4, int4-group32, int4-group64, "
                   "int4-group128, int8-row and bfloat16: ",
                   name));
}

int NominalBits(const Format& format) {
  switch (format.kind) {
    case FormatKind::kNf4:
    case FormatKind::kInt4Group:
      return 4;
    case FormatKind::kInt8Row:
      return 8;
    case FormatKind::kBfloat16:
      return 16;
  }
  return 0;
}

int64_t PackedTensorLayout::bytes() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count * static_cast<int64_t>(c10::elementSize(dtype));
}

std::vector<PackedTensorLayout> PackedLayout(const Format& format, int64_t rows, int64_t cols) {
  CheckFormat(format);
  const int64_t count = rows * cols;
  switch (format.kind) {
    case FormatKind::kNf4:
      return {{"absmax", at::kFloat, {CeilDivide(count, kNf4BlockSize)}},
              {"codes", at::kByte, {CeilDivide(count, 2)}}};
    case FormatKind::kInt4Group: {
      const int64_t groups = CeilDivide(cols, format.group_size);
      return {{"codes", at::kByte, {rows, CeilDivide(cols, 2)}},
              {"scale", at::kBFloat16, {rows, groups}},
              {"zero_point", at::kByte, {rows, CeilDivide(groups, 2)}}};
    }
    case FormatKind::kInt8Row:
      return {{"SCB", at::kFloat, {rows}}, {"codes", at::kChar, {rows, cols}}};
    case FormatKind::kBfloat16:
      return {{"weight", at::kBFloat16, {rows, cols}}};
  }
  return {};
}

int64_t PackedBytes(const Format& format, int64_t rows, int64_t cols) {
  int64_t bytes = 0;
  for (const PackedTensorLayout& tensor : PackedLayout(format, rows, cols)) bytes += tensor.bytes();
  return bytes;
}

int64_t PackedWeight::bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<int64_t>(tensor.nbytes());
  return bytes;
}

PackedWeight Quantize(const at::Tensor& weight, const Format& format) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.numel() > 0 && weight.is_floating_point(),
                    "Only non-empty floating [rows, cols] weights can be quantized, not ",
                    weight.toString(), " of shape ", weight.sizes());
  const at::Tensor original = weight.detach();
  PackedWeight packed{.format = format, .rows = weight.size(0), .cols = weight.size(1)};
  for (const PackedTensorLayout& tensor : PackedLayout(format, packed.rows, packed.cols)) {
    packed.tensors[tensor.name] = at::empty(tensor.shape, tensor.dtype);
  }
  switch (format.kind) {
    case FormatKind::kNf4: {
      const at::Tensor values = Float32OnCpu(original);
      CheckFinite(values, original, "float32");
      QuantizeNf4(values, packed);
      break;
    }
    case FormatKind::kInt4Group: {
      const at::Tensor values = Float32OnCpu(original);
      CheckFinite(values, original, "float32");
      QuantizeInt4Group(values, packed);
      break;
    }
    case FormatKind::kInt8Row: {
      // bitsandbytes' Int8Params rounds the weight to float16 before anything else.
      const at::Tensor values = Float32OnCpu(original.to(at::kHalf));
      CheckFinite(values, original, "float16");
      QuantizeInt8Row(values, packed);
      break;
    }
    case FormatKind::kBfloat16: {
      const at::Tensor rounded = original.to(at::kCPU, at::kBFloat16).contiguous();
      CheckFinite(rounded.to(at::kFloat), original, "bfloat16");
      packed.tensors["weight"].copy_(rounded);
      break;
    }
  }
  return packed;
}

at::Tensor Dequantize(const PackedWeight& packed, at::ScalarType dtype, at::Device device) {
  switch (packed.format.kind) {
    case FormatKind::kNf4:
      return DequantizeNf4(packed).to(dtype).to(device);
    case FormatKind::kInt4Group:
      return DequantizeInt4Group(packed).to(dtype).to(device);
    case FormatKind::kInt8Row:
      return DequantizeInt8Row(packed).to(dtype).to(device);
    case FormatKind::kBfloat16:
      return packed.tensors.at("weight").to(dtype).to(device);
  }
  TORCH_CHECK(false, "Unknown weight format");
}

}  // namespace qpruner::engine
