#include "worker/engine/quantize/format.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

const Format kNf4{.kind = FormatKind::kNf4};
const Format kInt8Row{.kind = FormatKind::kInt8Row};
const Format kBfloat16{.kind = FormatKind::kBfloat16};
Format Int4Group(int64_t group_size) {
  return {.kind = FormatKind::kInt4Group, .group_size = group_size};
}

at::Tensor Normal(int64_t rows, int64_t cols, uint64_t seed = 7) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed)) * 0.02;
}

// Equal bits, so that -0 is not 0 and subnormals are not zeros.
void ExpectSameBits(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const at::Tensor a = actual.contiguous(), e = expected.contiguous();
  const auto* a_bytes = static_cast<const uint8_t*>(a.const_data_ptr());
  const auto* e_bytes = static_cast<const uint8_t*>(e.const_data_ptr());
  const size_t size = a.element_size();
  for (int64_t i = 0; i < a.numel(); ++i) {
    ASSERT_EQ(std::memcmp(a_bytes + i * size, e_bytes + i * size, size), 0)
        << what << ", element " << i << ": " << a.reshape({-1})[i].item<double>() << " instead of "
        << e.reshape({-1})[i].item<double>();
  }
}

// --- Against bitsandbytes: tests/compat/quantize_golden.py ---

class BitsandbytesGolden : public ::testing::Test {
 protected:
  BitsandbytesGolden() {
    auto reader = SafetensorsReader::Open("tests/golden/quantize_bitsandbytes.safetensors");
    if (!reader.ok()) throw std::runtime_error(std::string(reader.status().message()));
    reader_ = *std::move(reader);
    for (const auto& [name, tensor] : reader_->tensors()) {
      const size_t dot = name.find('.');
      if (name.substr(dot) == ".weight") cases_.insert(name.substr(0, dot));
    }
  }

  bool Has(const std::string& name) const { return reader_->tensors().count(name) > 0; }
  at::Tensor Get(const std::string& name) const {
    return TensorFromView(reader_->tensors().at(name), reader_);
  }

  std::shared_ptr<SafetensorsReader> reader_;
  std::set<std::string> cases_;
};

TEST_F(BitsandbytesGolden, Nf4BitForBit) {
  ASSERT_EQ(cases_.size(), 14);
  for (const std::string& name : cases_) {
    const PackedWeight packed = Quantize(Get(name + ".weight"), kNf4);
    ExpectSameBits(packed.tensors.at("absmax"), Get(name + ".nf4.absmax"), name + " absmax");
    ExpectSameBits(packed.tensors.at("codes"), Get(name + ".nf4.codes"), name + " codes");
    for (const auto& [suffix, dtype] :
         {std::pair(".nf4.float32", at::kFloat), std::pair(".nf4.bfloat16", at::kBFloat16)}) {
      ExpectSameBits(Dequantize(packed, dtype, at::kCPU), Get(name + suffix), name + suffix);
    }
  }
}

TEST_F(BitsandbytesGolden, Int8RowBitForBit) {
  int compared = 0;
  for (const std::string& name : cases_) {
    if (!Has(name + ".int8.codes")) continue;
    ++compared;
    const PackedWeight packed = Quantize(Get(name + ".weight"), kInt8Row);
    ExpectSameBits(packed.tensors.at("SCB"), Get(name + ".int8.SCB"), name + " SCB");
    ExpectSameBits(packed.tensors.at("codes"), Get(name + ".int8.codes"), name + " codes");
    ExpectSameBits(Dequantize(packed, at::kFloat, at::kCPU), Get(name + ".int8.float32"),
                   name + " dequantized");
  }
  EXPECT_EQ(compared, 13);  // All but "tiny", whose last row float16 cannot hold.
}

// --- Against plain references, on sizes that give every thread and every vector lane work ---

// The definition: the nearest value in exact (double) arithmetic, the lower one of two.
int NearestNf4(double x) {
  int best = 0;
  for (int i = 1; i < 16; ++i) {
    if (std::abs(x - kNf4Values[i]) < std::abs(x - kNf4Values[best])) best = i;
  }
  return best;
}

TEST(Nf4, CodesAreNearestInEveryBlock) {
  const at::Tensor weight = Normal(301, 517);  // 155617 weights: 2431 full blocks and 33.
  const PackedWeight packed = Quantize(weight, kNf4);
  const float* w = weight.const_data_ptr<float>();
  const uint8_t* codes = packed.tensors.at("codes").const_data_ptr<uint8_t>();
  const float* absmax = packed.tensors.at("absmax").const_data_ptr<float>();
  int64_t on_a_bound = 0;
  for (int64_t i = 0; i < weight.numel(); ++i) {
    if (i % kNf4BlockSize == 0) {
      float expected = 0;
      for (int64_t j = i; j < std::min(i + kNf4BlockSize, weight.numel()); ++j) {
        expected = std::max(expected, std::abs(w[j]));
      }
      ASSERT_EQ(absmax[i / kNf4BlockSize], expected) << "block of " << i;
    }
    const double x = double{w[i]} / absmax[i / kNf4BlockSize];
    const int code = codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xF;
    if (code == NearestNf4(x)) continue;
    // float32 scaling and midpoints err by some 1e-7; farther than that, there is one nearest.
    ++on_a_bound;
    const double excess = std::abs(x - kNf4Values[code]) - std::abs(x - kNf4Values[NearestNf4(x)]);
    ASSERT_LT(excess, 5e-7) << "weight " << i;
  }
  EXPECT_LT(on_a_bound, 5);
}

TEST(Int8Row, CodesAreNearestInEveryRow) {
  const at::Tensor weight = Normal(70, 1003);
  const PackedWeight packed = Quantize(weight, kInt8Row);
  const at::Tensor half = weight.to(at::kHalf).to(at::kDouble);
  const at::Tensor absmax = half.abs().amax(1, /*keepdim=*/true);
  EXPECT_TRUE(at::equal(packed.tensors.at("SCB").to(at::kDouble), absmax.squeeze(1)));
  const at::Tensor steps = half * 127 / absmax;
  // Half a step, plus the two roundings of the scale: 127 * 2^-23.
  EXPECT_LE((packed.tensors.at("codes").to(at::kDouble) - steps).abs().max().item<double>(),
            0.5 + 127 * 1.2e-7);
}

// One group in plain double arithmetic on the stored (bfloat16) scale.
struct ReferenceGroup {
  double scale;
  int zero;
  std::vector<int> codes;
};
ReferenceGroup ReferenceInt4(const float* w, int64_t count) {
  double low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min<double>(low, w[i]);
    high = std::max<double>(high, w[i]);
  }
  ReferenceGroup group;
  group.scale = static_cast<float>(c10::BFloat16(static_cast<float>((high - low) / 15)));
  group.zero = group.scale > 0 ? std::clamp<int>(std::nearbyint(-low / group.scale), 0, 15) : 0;
  for (int64_t i = 0; i < count; ++i) {
    group.codes.push_back(
        group.scale > 0 ? std::clamp<int>(std::nearbyint(w[i] / group.scale) + group.zero, 0, 15)
                        : group.zero);
  }
  return group;
}

TEST(Int4Group, EqualsTheReference) {
  for (const int64_t group_size : {32, 64, 128}) {
    for (const int64_t cols : {1, 31, 64, 172, 391, 1024}) {
      at::Tensor weight = Normal(33, cols, cols);
      weight[3].fill_(0);       // A zero group.
      weight[4].abs_();         // No negative value: the zero point is 0.
      weight[5].abs_().neg_();  // No positive value: the zero point is 15.
      const Format format = Int4Group(group_size);
      const PackedWeight packed = Quantize(weight, format);
      const int64_t groups = (cols + group_size - 1) / group_size;
      const at::Tensor dequantized = Dequantize(packed, at::kFloat, at::kCPU);
      for (int64_t row = 0; row < weight.size(0); ++row) {
        for (int64_t g = 0; g < groups; ++g) {
          const std::string where =
              absl::StrCat("G ", group_size, " cols ", cols, " [", row, ", ", g, "]");
          const int64_t first = g * group_size, count = std::min(group_size, cols - first);
          const ReferenceGroup expected =
              ReferenceInt4(weight[row].const_data_ptr<float>() + first, count);
          ASSERT_EQ(packed.tensors.at("scale")[row][g].item<double>(), expected.scale) << where;
          const int zero =
              packed.tensors.at("zero_point")[row][g / 2].item<int>() >> (g % 2 == 0 ? 4 : 0) & 0xF;
          ASSERT_EQ(zero, expected.zero) << where;
          for (int64_t i = 0; i < count; ++i) {
            const int64_t col = first + i;
            const int code =
                packed.tensors.at("codes")[row][col / 2].item<int>() >> (col % 2 == 0 ? 4 : 0) &
                0xF;
            ASSERT_EQ(code, expected.codes[i]) << where << " " << i;
            ASSERT_EQ(dequantized[row][col].item<double>(), (code - zero) * expected.scale)
                << where << " " << i;
          }
        }
      }
    }
  }
}

TEST(Int4Group, ErrsByHalfAStepAndWhatTheScaleLost) {
  const at::Tensor weight = Normal(64, 256);
  const PackedWeight packed = Quantize(weight, Int4Group(64));
  const at::Tensor error = (Dequantize(packed, at::kFloat, at::kCPU) - weight).abs();
  const at::Tensor step = packed.tensors.at("scale").to(at::kFloat).repeat_interleave(64, 1);
  // bfloat16 may shorten the step by 2^-9, 15 times, and the zero point is rounded by half a step.
  EXPECT_LE((error / step).max().item<double>(), 0.5 + 0.5 + 15.0 / 512);
  EXPECT_LE((error / step).square().mean().item<double>(), 1.0 / 12 * 1.05);
}

// --- All formats ---

std::vector<Format> AllFormats() {
  return {kNf4, Int4Group(32), Int4Group(64), Int4Group(128), kInt8Row, kBfloat16};
}

TEST(Format, NamesAreReadBack) {
  for (const Format& format : AllFormats()) {
    const auto parsed = ParseFormatName(FormatName(format));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, format);
  }
  EXPECT_THAT(std::string(ParseFormatName("int4-group48").status().message()),
              HasSubstr("int4-group128"));
}

TEST(Format, EachByteIsAccountedFor) {
  // 7 rows of 75: 525 weights, 9 blocks of 64, 2 groups of 64 and 3 of 32 a row.
  EXPECT_EQ(PackedBytes(kNf4, 7, 75), 263 + 9 * 4);
  EXPECT_EQ(PackedBytes(Int4Group(64), 7, 75), 7 * (38 + 2 * 2 + 1));
  EXPECT_EQ(PackedBytes(Int4Group(32), 7, 75), 7 * (38 + 3 * 2 + 2));
  EXPECT_EQ(PackedBytes(Int4Group(128), 7, 75), 7 * (38 + 1 * 2 + 1));
  EXPECT_EQ(PackedBytes(kInt8Row, 7, 75), 525 + 7 * 4);
  EXPECT_EQ(PackedBytes(kBfloat16, 7, 75), 1050);
  for (const Format& format : AllFormats()) {
    for (const auto& [rows, cols] : {std::pair(7, 75), {1, 1}, {64, 64}, {3, 129}}) {
      EXPECT_EQ(Quantize(Normal(rows, cols), format).bytes(), PackedBytes(format, rows, cols))
          << FormatName(format);
    }
  }
}

TEST(Format, QuantizingAgainChangesNothing) {
  for (const Format& format : AllFormats()) {
    // The bfloat16 scale of int4-group can move when the range shrinks to what the codes reach.
    if (format.kind == FormatKind::kInt4Group) continue;
    const at::Tensor once = Dequantize(Quantize(Normal(40, 96), format), at::kFloat, at::kCPU);
    at::Tensor twice = Dequantize(Quantize(once, format), at::kFloat, at::kCPU);
    // int8-row: float16 rounds the dequantized weights, by less than half a step.
    EXPECT_TRUE(at::allclose(twice, once, /*rtol=*/1e-3, /*atol=*/1e-9)) << FormatName(format);
  }
}

TEST(Format, TheInputsLayoutAndDtypeDoNotMatter) {
  const at::Tensor weight = Normal(48, 80).to(at::kBFloat16);
  for (const Format& format : AllFormats()) {
    const PackedWeight expected = Quantize(weight.to(at::kFloat), format);
    for (const at::Tensor& same : {weight, weight.to(at::kDouble), weight.t().contiguous().t(),
                                   weight.clone().requires_grad_(true)}) {
      const PackedWeight packed = Quantize(same, format);
      for (const auto& [name, tensor] : expected.tensors) {
        EXPECT_TRUE(at::equal(packed.tensors.at(name), tensor))
            << FormatName(format) << " " << name;
      }
    }
  }
}

TEST(Format, TheNumberOfThreadsDoesNotMatter) {
  const at::Tensor weight = Normal(300, 700);
  const int threads = at::get_num_threads();
  for (const Format& format : AllFormats()) {
    at::set_num_threads(1);
    const PackedWeight one = Quantize(weight, format);
    at::set_num_threads(3);
    const PackedWeight three = Quantize(weight, format);
    for (const auto& [name, tensor] : one.tensors) {
      EXPECT_TRUE(at::equal(three.tensors.at(name), tensor)) << FormatName(format) << " " << name;
    }
  }
  at::set_num_threads(threads);
}

TEST(Format, ZerosStayZeros) {
  for (const Format& format : AllFormats()) {
    const PackedWeight packed = Quantize(at::zeros({3, 75}), format);
    EXPECT_TRUE(at::equal(Dequantize(packed, at::kFloat, at::kCPU), at::zeros({3, 75})))
        << FormatName(format);
  }
}

TEST(Format, ExtremeRangesStayFinite) {
  at::Tensor weight = Normal(4, 128);
  weight[0].fill_(1.5e38);
  weight[0][1] = -3e38;
  weight[1].fill_(std::numeric_limits<float>::denorm_min());
  for (const Format& format : {kNf4, Int4Group(64)}) {
    const at::Tensor back = Dequantize(Quantize(weight, format), at::kFloat, at::kCPU);
    EXPECT_TRUE(at::isfinite(back).all().item<bool>()) << FormatName(format);
    // Steps are absmax / 7.5 at most for both formats; the zero point errs by half a step more.
    EXPECT_TRUE(at::allclose(back[0], weight[0], 0.14, 0)) << FormatName(format);
  }
}

TEST(Format, NonFiniteWeightsAreRefusedByPosition) {
  for (const Format& format : AllFormats()) {
    for (const double bad : {std::numeric_limits<double>::infinity(),
                             -std::numeric_limits<double>::infinity(), std::nan("")}) {
      at::Tensor weight = Normal(9, 70);
      weight[8][69] = bad;
      try {
        Quantize(weight, format);
        FAIL() << FormatName(format) << " took " << bad;
      } catch (const c10::Error& error) {
        EXPECT_THAT(error.what_without_backtrace(), HasSubstr("Weight [8, 69] is"));
      }
    }
  }
}

TEST(Format, WhatFloat16CannotHoldIsRefusedForInt8) {
  at::Tensor weight = Normal(2, 8);
  weight[1][2] = 7e4;
  try {
    Quantize(weight, kInt8Row);
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                HasSubstr("Weight [1, 2] is 70000, which is not finite in float16"));
  }
}

TEST(Format, EmptyWeightsAndUnknownGroupsAreRefused) {
  EXPECT_THROW(Quantize(at::zeros({0, 8}), kNf4), c10::Error);
  EXPECT_THROW(Quantize(at::zeros({8}), kNf4), c10::Error);
  EXPECT_THROW(Quantize(at::zeros({2, 8}, at::kInt), kNf4), c10::Error);
  EXPECT_THROW(Quantize(at::zeros({2, 8}), Int4Group(48)), c10::Error);
}

}  // namespace
}  // namespace qpruner::engine
