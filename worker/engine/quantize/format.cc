#include "worker/engine/quantize/format.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "worker/engine/quantize/codebook_format.h"
#include "worker/engine/quantize/float_kernels.h"
#include "worker/engine/quantize/integer_format.h"
#include "worker/engine/quantize/parallel_rows.h"

namespace qpruner::engine {
namespace {

constexpr std::array<int64_t, 3> kGroupSizes = {32, 64, 128};

void CheckFormat(const Format& format) {
  const std::vector<Format>& all = AllFormats();
  TORCH_CHECK_VALUE(std::find(all.begin(), all.end(), format) != all.end(),
                    "No such weight format: ", FormatName(format));
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
  ParallelUnits(values.numel(), 1, [&](int64_t begin, int64_t end) {
    if (!AllFinite(data + begin, end - begin)) finite.store(false, std::memory_order_relaxed);
  });
  if (!finite) RefuseNonFinite(values, original, type);
}

at::Tensor Float32OnCpu(const at::Tensor& weight) {
  return weight.to(at::kCPU, at::kFloat).contiguous();
}

std::vector<Format> MakeAllFormats() {
  std::vector<Format> formats;
  for (int bits : {2, 3, 4, 8}) formats.push_back(Format::NormalFloat(bits));
  formats.push_back(Format::NormalFloat(4, /*double_quantized=*/true));
  formats.push_back(Format::Float4());
  formats.push_back(Format::Float4(/*double_quantized=*/true));
  for (int bits = 2; bits <= 8; ++bits) {
    for (int64_t group_size : kGroupSizes) {
      for (bool symmetric : {false, true}) {
        formats.push_back(Format::IntegerGroup(bits, group_size, symmetric));
      }
    }
  }
  formats.push_back(Format::Integer8Row());
  formats.push_back(Format::Bfloat16());
  return formats;
}

}  // namespace

const std::vector<Format>& AllFormats() {
  static const std::vector<Format>& formats = *new std::vector<Format>(MakeAllFormats());
  return formats;
}

std::string FormatName(const Format& format) {
  const char* nested = format.double_quantized ? "-dq" : "";
  switch (format.kind) {
    case FormatKind::kNormalFloat:
      return absl::StrCat("nf", format.bits, nested);
    case FormatKind::kFloat4:
      return absl::StrCat("fp4", nested);
    case FormatKind::kIntegerGroup:
      return absl::StrCat("int", format.bits, format.symmetric ? "-sym" : "", "-group",
                          format.group_size);
    case FormatKind::kInteger8Row:
      return "int8-row";
    case FormatKind::kBfloat16:
      return "bfloat16";
  }
  return "unknown";
}

absl::StatusOr<Format> ParseFormatName(absl::string_view name) {
  for (const Format& format : AllFormats()) {
    if (name == FormatName(format)) return format;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("No such weight format; there are nf2, nf3, nf4, nf8, nf4-dq, fp4, fp4-dq, "
                   "intB-groupG and intB-sym-groupG (B from 2 to 8; G 32, 64 or 128), int8-row and "
                   "bfloat16: ",
                   name));
}

int64_t PackedTensorLayout::bytes() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count * static_cast<int64_t>(c10::elementSize(dtype));
}

std::vector<PackedTensorLayout> PackedLayout(const Format& format, int64_t rows, int64_t cols) {
  CheckFormat(format);
  switch (format.kind) {
    case FormatKind::kNormalFloat:
    case FormatKind::kFloat4:
      return CodebookLayout(format, rows, cols);
    case FormatKind::kIntegerGroup:
      return IntegerGroupLayout(format, rows, cols);
    case FormatKind::kInteger8Row:
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
    case FormatKind::kNormalFloat:
    case FormatKind::kFloat4: {
      const at::Tensor values = Float32OnCpu(original);
      CheckFinite(values, original, "float32");
      QuantizeCodebook(values, packed);
      break;
    }
    case FormatKind::kIntegerGroup: {
      const at::Tensor values = Float32OnCpu(original);
      CheckFinite(values, original, "float32");
      QuantizeIntegerGroups(values, packed);
      break;
    }
    case FormatKind::kInteger8Row: {
      // bitsandbytes' Int8Params rounds the weight to float16 before anything else.
      const at::Tensor values = Float32OnCpu(original.to(at::kHalf));
      CheckFinite(values, original, "float16");
      QuantizeInt8Rows(values, packed);
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
    case FormatKind::kNormalFloat:
    case FormatKind::kFloat4:
      return DequantizeCodebook(packed).to(dtype).to(device);
    case FormatKind::kIntegerGroup:
      return DequantizeIntegerGroups(packed).to(dtype).to(device);
    case FormatKind::kInteger8Row:
      return DequantizeInt8Rows(packed).to(dtype).to(device);
    case FormatKind::kBfloat16:
      return packed.tensors.at("weight").to(dtype).to(device);
  }
  TORCH_CHECK(false, "Unknown weight format");
}

}  // namespace qpruner::engine
