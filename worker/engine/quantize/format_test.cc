// What holds for every format.
#include "worker/engine/quantize/format.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

at::Tensor Normal(int64_t rows, int64_t cols, uint64_t seed = 7) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed)) * 0.02;
}

TEST(Format, NamesAreReadBack) {
  for (const Format& format : AllFormats()) {
    const auto parsed = ParseFormatName(FormatName(format));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, format);
  }
  EXPECT_THAT(std::string(ParseFormatName("int4-group48").status().message()),
              HasSubstr("intB-groupG"));
}

TEST(Format, EachByteIsAccountedFor) {
  // 7 rows of 75: 525 weights, 9 blocks of 64, 2 groups of 64 and 3 of 32 a row.
  EXPECT_EQ(PackedBytes(Format::NormalFloat(4), 7, 75), 263 + 9 * 4);
  EXPECT_EQ(PackedBytes(Format::IntegerGroup(4, 64), 7, 75), 7 * (38 + 2 * 2 + 1));
  EXPECT_EQ(PackedBytes(Format::IntegerGroup(4, 32), 7, 75), 7 * (38 + 3 * 2 + 2));
  EXPECT_EQ(PackedBytes(Format::IntegerGroup(4, 128), 7, 75), 7 * (38 + 1 * 2 + 1));
  EXPECT_EQ(PackedBytes(Format::IntegerGroup(3, 32), 7, 75), 7 * (29 + 3 * 2 + 2));
  EXPECT_EQ(PackedBytes(Format::IntegerGroup(4, 64, true), 7, 75), 7 * (38 + 2 * 2));
  EXPECT_EQ(PackedBytes(Format::NormalFloat(2), 7, 75), 132 + 9 * 4);
  EXPECT_EQ(PackedBytes(Format::NormalFloat(3), 7, 75), 197 + 9 * 4);
  EXPECT_EQ(PackedBytes(Format::NormalFloat(8), 7, 75), 525 + 9 * 4);
  EXPECT_EQ(PackedBytes(Format::Float4(), 7, 75), 263 + 9 * 4);
  EXPECT_EQ(PackedBytes(Format::NormalFloat(4, true), 7, 75), 263 + 9 + 4 + 4);
  EXPECT_EQ(PackedBytes(Format::Float4(true), 512, 64), 512 * 32 + 512 + 2 * 4 + 4);
  EXPECT_EQ(PackedBytes(Format::Integer8Row(), 7, 75), 525 + 7 * 4);
  EXPECT_EQ(PackedBytes(Format::Bfloat16(), 7, 75), 1050);
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
    if (format.kind == FormatKind::kIntegerGroup) continue;
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
  for (const Format& format : {Format::NormalFloat(4), Format::IntegerGroup(4, 64)}) {
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
    Quantize(weight, Format::Integer8Row());
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                HasSubstr("Weight [1, 2] is 70000, which is not finite in float16"));
  }
}

TEST(Format, EmptyWeightsAndUnknownGroupsAreRefused) {
  EXPECT_THROW(Quantize(at::zeros({0, 8}), Format::NormalFloat(4)), c10::Error);
  EXPECT_THROW(Quantize(at::zeros({8}), Format::NormalFloat(4)), c10::Error);
  EXPECT_THROW(Quantize(at::zeros({2, 8}, at::kInt), Format::NormalFloat(4)), c10::Error);
  EXPECT_THROW(Quantize(at::zeros({2, 8}), Format::IntegerGroup(4, 48)), c10::Error);
}

}  // namespace
}  // namespace qpruner::engine
