#include "worker/engine/quantize/low_bit_linear.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "worker/engine/quantize/integer_format.h"

namespace qpruner::engine {
namespace {

// Rows that the 4-bit kernel packs together.
constexpr int64_t kRowTile = 16;

}  // namespace

absl::StatusOr<LowBitLinear> LowBitLinear::Create(const PackedWeight& packed) {
  LowBitLinear linear;
  const Format& format = packed.format;
  linear.kind_ = format.kind;
  linear.group_size_ = format.group_size;
  if (format.kind == FormatKind::kBfloat16) {
    linear.weight_ = packed.tensors.at("weight");
    return linear;
  }
  if (format.kind == FormatKind::kInteger8Row) {
    linear.weight_ = packed.tensors.at("codes");
    linear.scales_ = (packed.tensors.at("SCB") / 127).to(at::kBFloat16);
    return linear;
  }
  if (format.kind != FormatKind::kIntegerGroup || format.bits != 4 ||
      packed.cols % format.group_size != 0 || packed.rows % kRowTile != 0) {
    return absl::UnimplementedError(absl::StrCat("No low-bit kernel takes ", FormatName(format),
                                                 " of [", packed.rows, ", ", packed.cols, "]"));
  }
  const IntegerCodes codes = UnpackIntegers(packed);
  linear.weight_ =
      at::_convert_weight_to_int4pack_for_cpu(codes.codes.to(at::kInt), /*innerKTiles=*/1);
  // The kernel's weight is (code - 8) scale + zero.
  const at::Tensor scale = codes.scale.to(at::kFloat);
  const at::Tensor zero = (8 - codes.zero_point.to(at::kFloat)) * scale;
  linear.scales_ = at::stack({scale, zero}, -1).transpose(0, 1).contiguous().to(at::kBFloat16);
  return linear;
}

at::Tensor LowBitLinear::operator()(const at::Tensor& x) const {
  switch (kind_) {
    case FormatKind::kIntegerGroup:
      return at::_weight_int4pack_mm_for_cpu(x, weight_, group_size_, scales_);
    case FormatKind::kInteger8Row:
      return at::_weight_int8pack_mm(x, weight_, scales_);
    default:
      return at::linear(x, weight_);
  }
}

int64_t LowBitLinear::bytes() const {
  return static_cast<int64_t>(weight_.nbytes()) +
         (scales_.defined() ? static_cast<int64_t>(scales_.nbytes()) : 0);
}

}  // namespace qpruner::engine
