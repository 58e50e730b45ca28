#include "worker/engine/quantize/integer_format.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "worker/engine/quantize/bit_packing.h"
#include "worker/engine/quantize/integer_kernels.h"
#include "worker/engine/quantize/parallel_rows.h"

namespace qpruner::engine {
namespace {

int64_t GroupsOf(const Format& format, int64_t cols) { return CeilDivide(cols, format.group_size); }

int SymmetricZeroPoint(const Format& format) { return 1 << (format.bits - 1); }

// What one group is stored with.
struct GroupScale {
  c10::BFloat16 scale;
  uint8_t zero_point;
};

GroupScale ScaleOf(const Format& format, const float* values, int64_t count) {
  if (format.symmetric) {
    return {c10::BFloat16(SymmetricStep(values, count, format.bits)),
            static_cast<uint8_t>(SymmetricZeroPoint(format))};
  }
  const IntegerRange range = AsymmetricRange(values, count, format.bits);
  const c10::BFloat16 scale(range.step);
  return {scale, static_cast<uint8_t>(ZeroPointOf(range, scale, format.bits))};
}

// Calls work(group, first, count) for the groups of a row.
template <typename Work>
void ForEachGroup(const Format& format, int64_t cols, const Work& work) {
  for (int64_t first = 0, group = 0; first < cols; first += format.group_size, ++group) {
    work(group, first, std::min(format.group_size, cols - first));
  }
}

// The row's tensors in a packed weight; zero_point is null if there are none.
struct PackedRow {
  uint8_t* codes;
  c10::BFloat16* scale;
  uint8_t* zero_point;
};

PackedRow RowOf(const PackedWeight& packed, int64_t row) {
  const int bits = packed.format.bits;
  const int64_t groups = GroupsOf(packed.format, packed.cols);
  PackedRow at{
      packed.tensors.at("codes").data_ptr<uint8_t>() + row * PackedCodeBytes(packed.cols, bits),
      packed.tensors.at("scale").data_ptr<c10::BFloat16>() + row * groups, nullptr};
  if (!packed.format.symmetric) {
    at.zero_point =
        packed.tensors.at("zero_point").data_ptr<uint8_t>() + row * PackedCodeBytes(groups, bits);
  }
  return at;
}

std::vector<uint8_t> ZeroPointsOf(const PackedWeight& packed, const PackedRow& row) {
  const int64_t groups = GroupsOf(packed.format, packed.cols);
  std::vector<uint8_t> zero(static_cast<size_t>(groups),
                            static_cast<uint8_t>(SymmetricZeroPoint(packed.format)));
  if (row.zero_point != nullptr)
    UnpackBits(row.zero_point, groups, packed.format.bits, zero.data());
  return zero;
}

}  // namespace

std::vector<PackedTensorLayout> IntegerGroupLayout(const Format& format, int64_t rows,
                                                   int64_t cols) {
  const int64_t groups = GroupsOf(format, cols);
  std::vector<PackedTensorLayout> layout = {
      {"codes", at::kByte, {rows, PackedCodeBytes(cols, format.bits)}},
      {"scale", at::kBFloat16, {rows, groups}}};
  if (!format.symmetric) {
    layout.push_back({"zero_point", at::kByte, {rows, PackedCodeBytes(groups, format.bits)}});
  }
  return layout;
}

IntegerCodes FindIntegerGroups(const at::Tensor& values, const Format& format) {
  const int64_t rows = values.size(0), cols = values.size(1), groups = GroupsOf(format, cols);
  IntegerCodes found{.scale = at::empty({rows, groups}, at::kBFloat16),
                     .zero_point = at::empty({rows, groups}, at::kByte)};
  const float* data = values.const_data_ptr<float>();
  c10::BFloat16* scale = found.scale.mutable_data_ptr<c10::BFloat16>();
  uint8_t* zero_point = found.zero_point.mutable_data_ptr<uint8_t>();
  ParallelUnits(rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      ForEachGroup(format, cols, [&](int64_t group, int64_t first, int64_t count) {
        const GroupScale of = ScaleOf(format, data + row * cols + first, count);
        scale[row * groups + group] = of.scale;
        zero_point[row * groups + group] = of.zero_point;
      });
    }
  });
  return found;
}

void RoundToIntegerGroups(const at::Tensor& values, const Format& format, IntegerCodes& codes) {
  const int64_t rows = values.size(0), cols = values.size(1), groups = GroupsOf(format, cols);
  codes.codes = at::empty({rows, cols}, at::kByte);
  const float* data = values.const_data_ptr<float>();
  const c10::BFloat16* scale = codes.scale.const_data_ptr<c10::BFloat16>();
  const uint8_t* zero_point = codes.zero_point.const_data_ptr<uint8_t>();
  uint8_t* out = codes.codes.mutable_data_ptr<uint8_t>();
  ParallelUnits(rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      ForEachGroup(format, cols, [&](int64_t group, int64_t first, int64_t count) {
        EncodeIntegers(data + row * cols + first, count, scale[row * groups + group],
                       zero_point[row * groups + group], format.bits, out + row * cols + first);
      });
    }
  });
}

void PackIntegers(const IntegerCodes& codes, PackedWeight& packed) {
  const int64_t cols = packed.cols, groups = GroupsOf(packed.format, cols);
  const int bits = packed.format.bits;
  packed.tensors.at("scale").copy_(codes.scale);
  const uint8_t* from = codes.codes.const_data_ptr<uint8_t>();
  const uint8_t* zero_point = codes.zero_point.const_data_ptr<uint8_t>();
  ParallelUnits(packed.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const PackedRow to = RowOf(packed, row);
      PackBits(from + row * cols, cols, bits, to.codes);
      if (to.zero_point != nullptr)
        PackBits(zero_point + row * groups, groups, bits, to.zero_point);
    }
  });
}

IntegerCodes UnpackIntegers(const PackedWeight& packed) {
  const int64_t cols = packed.cols, groups = GroupsOf(packed.format, cols);
  IntegerCodes codes{.codes = at::empty({packed.rows, cols}, at::kByte),
                     .scale = packed.tensors.at("scale"),
                     .zero_point = at::empty({packed.rows, groups}, at::kByte)};
  uint8_t* to = codes.codes.mutable_data_ptr<uint8_t>();
  uint8_t* zero_to = codes.zero_point.mutable_data_ptr<uint8_t>();
  ParallelUnits(packed.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const PackedRow from = RowOf(packed, row);
      UnpackBits(from.codes, cols, packed.format.bits, to + row * cols);
      const std::vector<uint8_t> zero = ZeroPointsOf(packed, from);
      std::copy(zero.begin(), zero.end(), zero_to + row * groups);
    }
  });
  return codes;
}

void QuantizeIntegerGroups(const at::Tensor& values, PackedWeight& packed) {
  const Format& format = packed.format;
  const int64_t cols = packed.cols, groups = GroupsOf(format, cols);
  const float* data = values.const_data_ptr<float>();
  ParallelUnits(packed.rows, cols, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> codes(static_cast<size_t>(cols)), zero(static_cast<size_t>(groups));
    for (int64_t row = begin; row < end; ++row) {
      const PackedRow to = RowOf(packed, row);
      ForEachGroup(format, cols, [&](int64_t group, int64_t first, int64_t count) {
        const float* values_of_group = data + row * cols + first;
        // What is stored decides the codes: they are nearest for the rounded scale.
        const GroupScale of = ScaleOf(format, values_of_group, count);
        to.scale[group] = of.scale;
        zero[static_cast<size_t>(group)] = of.zero_point;
        EncodeIntegers(values_of_group, count, of.scale, of.zero_point, format.bits,
                       codes.data() + first);
      });
      PackBits(codes.data(), cols, format.bits, to.codes);
      if (to.zero_point != nullptr) PackBits(zero.data(), groups, format.bits, to.zero_point);
    }
  });
}

at::Tensor DequantizeIntegerGroups(const PackedWeight& packed) {
  at::Tensor result = at::empty({packed.rows, packed.cols}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  const int64_t cols = packed.cols;
  ParallelUnits(packed.rows, cols, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> codes(static_cast<size_t>(cols));
    for (int64_t row = begin; row < end; ++row) {
      const PackedRow from = RowOf(packed, row);
      UnpackBits(from.codes, cols, packed.format.bits, codes.data());
      const std::vector<uint8_t> zero = ZeroPointsOf(packed, from);
      ForEachGroup(packed.format, cols, [&](int64_t group, int64_t first, int64_t count) {
        DecodeIntegers(codes.data() + first, count, from.scale[group],
                       zero[static_cast<size_t>(group)], out + row * cols + first);
      });
    }
  });
  return result;
}

void QuantizeInt8Rows(const at::Tensor& values, PackedWeight& packed) {
  const float* data = values.const_data_ptr<float>();
  int8_t* codes = packed.tensors.at("codes").mutable_data_ptr<int8_t>();
  float* absmax = packed.tensors.at("SCB").mutable_data_ptr<float>();
  const int64_t cols = packed.cols;
  ParallelUnits(packed.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      absmax[row] = EncodeInt8Row(data + row * cols, cols, codes + row * cols);
    }
  });
}

at::Tensor DequantizeInt8Rows(const PackedWeight& packed) {
  at::Tensor result = at::empty({packed.rows, packed.cols}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  const int8_t* codes = packed.tensors.at("codes").const_data_ptr<int8_t>();
  const float* absmax = packed.tensors.at("SCB").const_data_ptr<float>();
  const int64_t cols = packed.cols;
  ParallelUnits(packed.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      DecodeInt8Row(codes + row * cols, absmax[row], cols, out + row * cols);
    }
  });
  return result;
}

}  // namespace qpruner::engine
