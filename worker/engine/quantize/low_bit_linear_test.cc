#include "worker/engine/quantize/low_bit_linear.h"

#include <ATen/ATen.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

at::Tensor Normal(int64_t rows, int64_t cols, uint64_t seed) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed));
}

TEST(LowBitLinear, IsTheProductWithTheDequantizedWeight) {
  const at::Tensor weight = Normal(96, 256, 1) * 0.02;
  for (const Format& format :
       {Format::IntegerGroup(4, 32), Format::IntegerGroup(4, 64), Format::IntegerGroup(4, 128),
        Format::IntegerGroup(4, 64, /*symmetric=*/true), Format::Integer8Row(),
        Format::Bfloat16()}) {
    const PackedWeight packed = Quantize(weight, format);
    const auto linear = LowBitLinear::Create(packed);
    ASSERT_TRUE(linear.ok()) << linear.status();
    for (const int64_t tokens : {1, 3, 40}) {
      const at::Tensor x = Normal(tokens, 256, 2).to(at::kBFloat16);
      const at::Tensor expected =
          at::matmul(x.to(at::kFloat), Dequantize(packed, at::kFloat, at::kCPU).t());
      const at::Tensor found = (*linear)(x).to(at::kFloat);
      // bfloat16 has 8 bits: products of rounded scales, zeros and results, over 256 terms.
      EXPECT_LE((found - expected).abs().max().item<double>(),
                0.02 * expected.abs().max().item<double>())
          << FormatName(format) << ", " << tokens << " tokens";
    }
    EXPECT_LE(linear->bytes(), PackedBytes(format, 96, 256) * 1.2) << FormatName(format);
  }
}

TEST(LowBitLinear, WhatNoKernelTakesIsRefusedByName) {
  const auto message = [](const Format& format, int64_t rows, int64_t cols) {
    const auto linear = LowBitLinear::Create(Quantize(Normal(rows, cols, 3), format));
    EXPECT_EQ(linear.status().code(), absl::StatusCode::kUnimplemented);
    return std::string(linear.status().message());
  };
  EXPECT_THAT(message(Format::NormalFloat(4), 32, 64), testing::HasSubstr("nf4 of [32, 64]"));
  EXPECT_THAT(message(Format::IntegerGroup(4, 32), 32, 80), testing::HasSubstr("[32, 80]"));
  EXPECT_THAT(message(Format::IntegerGroup(3, 32), 32, 64), testing::HasSubstr("int3-group32"));
}

}  // namespace
}  // namespace qpruner::engine
