// Against plain references, on sizes that give every thread and every vector lane work.
#include "worker/engine/quantize/integer_format.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

at::Tensor Normal(int64_t rows, int64_t cols, uint64_t seed = 7) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed)) * 0.02;
}

TEST(IntegerFormat, Int8CodesAreNearestInEveryRow) {
  const at::Tensor weight = Normal(70, 1003);
  const PackedWeight packed = Quantize(weight, Format::Integer8Row());
  const at::Tensor half = weight.to(at::kHalf).to(at::kDouble);
  const at::Tensor absmax = half.abs().amax(1, /*keepdim=*/true);
  EXPECT_TRUE(at::equal(packed.tensors.at("SCB").to(at::kDouble), absmax.squeeze(1)));
  const at::Tensor steps = half * 127 / absmax;
  // Half a step, plus the two roundings of the scale: 127 * 2^-23.
  EXPECT_LE((packed.tensors.at("codes").to(at::kDouble) - steps).abs().max().item<double>(),
            0.5 + 127 * 1.2e-7);
}

// One group in plain double arithmetic on the stored (bfloat16) scale. Codes are unsigned.
struct ReferenceGroup {
  double scale = 0;
  int zero = 0;
  std::vector<int> codes;
};
ReferenceGroup Reference(const float* w, int64_t count, int bits, bool symmetric) {
  double low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min<double>(low, w[i]);
    high = std::max<double>(high, w[i]);
  }
  const int last = (1 << bits) - 1;
  const double step =
      symmetric ? std::max(high, -low) / (last / 2.0) : (high - low) / static_cast<double>(last);
  ReferenceGroup group;
  group.scale = static_cast<float>(c10::BFloat16(static_cast<float>(step)));
  group.zero = symmetric         ? 1 << (bits - 1)
               : group.scale > 0 ? std::clamp<int>(std::nearbyint(-low / group.scale), 0, last)
                                 : 0;
  for (int64_t i = 0; i < count; ++i) {
    group.codes.push_back(group.scale > 0 ? static_cast<int>(std::clamp(
                                                std::nearbyint(w[i] / group.scale + group.zero),
                                                0.0, static_cast<double>(last)))
                                          : group.zero);
  }
  return group;
}

TEST(IntegerFormat, EqualsTheReference) {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t group_size : {32, 64, 128}) {
      for (const int64_t cols : {1, 31, 172, 391}) {
        for (const bool symmetric : {false, true}) {
          at::Tensor weight = Normal(9, cols, cols);
          weight[3].fill_(0);       // A zero group.
          weight[4].abs_();         // No negative value: the zero point is 0.
          weight[5].abs_().neg_();  // No positive value: the zero point is the last code.
          const Format format = Format::IntegerGroup(bits, group_size, symmetric);
          const PackedWeight packed = Quantize(weight, format);
          const IntegerCodes unpacked = UnpackIntegers(packed);
          const at::Tensor dequantized = Dequantize(packed, at::kFloat, at::kCPU);
          const auto codes = unpacked.codes.accessor<uint8_t, 2>();
          const auto values = dequantized.accessor<float, 2>();
          int64_t ties = 0;
          for (int64_t row = 0; row < weight.size(0); ++row) {
            for (int64_t first = 0, g = 0; first < cols; first += group_size, ++g) {
              const std::string where =
                  absl::StrCat(FormatName(format), " cols ", cols, " [", row, ", ", g, "]");
              const int64_t count = std::min(group_size, cols - first);
              const float* w = weight[row].const_data_ptr<float>() + first;
              const ReferenceGroup expected = Reference(w, count, bits, symmetric);
              ASSERT_EQ(unpacked.scale[row][g].item<double>(), expected.scale) << where;
              ASSERT_EQ(unpacked.zero_point[row][g].item<int>(), expected.zero) << where;
              for (int64_t i = 0; i < count; ++i) {
                const int code = codes[row][first + i];
                if (code != expected.codes[static_cast<size_t>(i)]) {
                  // float32 positions err by 2^-24 of the code range; farther from the middle of
                  // two codes there is one nearest.
                  ++ties;
                  const double position = w[i] / expected.scale + expected.zero;
                  ASSERT_NEAR(std::abs(position - std::floor(position)), 0.5, 1e-4) << where;
                }
                ASSERT_EQ(values[row][first + i],
                          static_cast<float>((code - expected.zero) * expected.scale))
                    << where << " " << i;
              }
            }
          }
          EXPECT_LE(ties, 2) << FormatName(format) << " cols " << cols;
        }
      }
    }
  }
}

TEST(IntegerFormat, ErrsByHalfAStepAndWhatTheScaleLost) {
  const at::Tensor weight = Normal(64, 256);
  const PackedWeight packed = Quantize(weight, Format::IntegerGroup(4, 64));
  const at::Tensor error = (Dequantize(packed, at::kFloat, at::kCPU) - weight).abs();
  const at::Tensor step = packed.tensors.at("scale").to(at::kFloat).repeat_interleave(64, 1);
  // bfloat16 may shorten the step by 2^-9, 15 times, and the zero point is rounded by half a step.
  EXPECT_LE((error / step).max().item<double>(), 0.5 + 0.5 + 15.0 / 512);
  EXPECT_LE((error / step).square().mean().item<double>(), 1.0 / 12 * 1.05);
}

TEST(IntegerFormat, FindingThenRoundingThenPackingIsQuantizing) {
  const at::Tensor weight = Normal(40, 200);
  for (const bool symmetric : {false, true}) {
    const Format format = Format::IntegerGroup(3, 64, symmetric);
    IntegerCodes codes = FindIntegerGroups(weight, format);
    RoundToIntegerGroups(weight, format, codes);
    const PackedWeight expected = Quantize(weight, format);
    PackedWeight packed = Quantize(at::zeros_like(weight), format);
    PackIntegers(codes, packed);
    for (const auto& [name, tensor] : expected.tensors) {
      EXPECT_TRUE(at::equal(packed.tensors.at(name), tensor)) << name;
    }
  }
}

}  // namespace
}  // namespace qpruner::engine
