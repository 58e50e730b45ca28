#include "worker/engine/quantize/gptq.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/testing/tensor_memory.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

at::Tensor Hessian(const at::Tensor& inputs) {
  const at::Tensor x = inputs.to(at::kDouble);
  return at::matmul(x.t(), x);
}

at::Tensor Values(const PackedWeight& packed) { return Dequantize(packed, at::kFloat, at::kCPU); }

// Mean square error of the outputs.
double OutputError(const at::Tensor& weight, const at::Tensor& values, const at::Tensor& inputs) {
  return at::matmul(inputs, (weight - values).t()).square().mean().item<double>();
}

// Inputs with correlated channels of different sizes: where correcting pays.
at::Tensor CorrelatedInputs(int64_t tokens, int64_t cols, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const at::Tensor mix =
      at::randn({cols, cols}, generator) / std::sqrt(static_cast<double>(cols)) + at::eye(cols);
  return at::matmul(at::randn({tokens, cols}, generator), mix) * at::randn({cols}, generator).exp();
}

at::Tensor Normal(int64_t rows, int64_t cols, uint64_t seed = 7) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed)) * 0.02;
}

// tests/compat/gptq_golden.py: the paper's algorithm in float64, which llm-compressor's code agrees
// with.
TEST(Gptq, EqualsTheIndependentTranscription) {
  auto reader = SafetensorsReader::Open("tests/golden/gptq.safetensors");
  ASSERT_TRUE(reader.ok()) << reader.status();
  const std::shared_ptr<SafetensorsReader> file = *std::move(reader);
  const auto get = [&](const std::string& name) {
    return TensorFromView(file->tensors().at(name), file);
  };
  const std::vector<Format> formats = {Format::IntegerGroup(3, 32),
                                       Format::IntegerGroup(4, 64, /*symmetric=*/true),
                                       Format::NormalFloat(4)};
  for (const std::string name : {"wide", "few_samples", "dead_inputs"}) {
    const at::Tensor weight = get(name + ".weight");
    const at::Tensor hessian = Hessian(get(name + ".inputs"));
    for (const bool act_order : {true, false}) {
      const auto packed = QuantizeGptq(weight, hessian, formats, {.activation_order = act_order});
      ASSERT_EQ(packed.size(), formats.size());
      for (size_t i = 0; i < formats.size(); ++i) {
        const std::string golden =
            absl::StrCat(name, act_order ? "." : ".plain.", FormatName(formats[i]), ".values");
        const at::Tensor differ = (Values(packed[i]) - get(golden)).abs() > 1e-6;
        // The weights are corrected in float32 here: one that comes to lie within 1e-5 steps of a
        // midpoint can go the other way, and take later ones of its row along.
        EXPECT_LE(differ.any(1).sum().item<int64_t>(), weight.size(0) / 8) << golden;
      }
    }
  }
}

std::vector<Format> SupportedFormats() {
  std::vector<Format> formats;
  for (const Format& format : AllFormats()) {
    if (SupportsGptq(format)) formats.push_back(format);
  }
  return formats;
}

TEST(Gptq, LosesLessThanRoundingToNearest) {
  const at::Tensor weight = Normal(16, 256);
  const at::Tensor inputs = CorrelatedInputs(600, 256, 1);
  for (const PackedWeight& packed : QuantizeGptq(weight, Hessian(inputs), SupportedFormats())) {
    EXPECT_EQ(packed.bytes(), PackedBytes(packed.format, 16, 256));
    EXPECT_LT(OutputError(weight, Values(packed), inputs),
              0.7 * OutputError(weight, Values(Quantize(weight, packed.format)), inputs))
        << FormatName(packed.format);
  }
}

TEST(Gptq, WithUncorrelatedInputsItIsRoundingToNearest) {
  const at::Tensor weight = Normal(8, 96);
  for (const PackedWeight& packed :
       QuantizeGptq(weight, at::eye(96), SupportedFormats(), {.damping = 0})) {
    // Its codes are nearest for the absmax as stored, those of bitsandbytes for the one before.
    if (packed.format.double_quantized) continue;
    // Tables: a value between two codes can fall to another side where division and multiplication
    // by the absmax round differently.
    const at::Tensor expected = Values(Quantize(weight, packed.format));
    EXPECT_LE((Values(packed) != expected).sum().item<int64_t>(), 1) << FormatName(packed.format);
  }
}

TEST(Gptq, TheSizeOfItsBlocksChangesSpeedOnly) {
  const at::Tensor weight = Normal(16, 200);
  const at::Tensor hessian = Hessian(CorrelatedInputs(400, 200, 3));
  const Format format = Format::IntegerGroup(4, 32);
  const at::Tensor whole =
      Values(QuantizeGptq(weight, hessian, {format}, {.block_columns = 200})[0]);
  for (const int64_t block : {1, 7, 64, 128}) {
    const at::Tensor values =
        Values(QuantizeGptq(weight, hessian, {format}, {.block_columns = block})[0]);
    // float32 sums in another order.
    EXPECT_LE((values != whole).any(1).sum().item<int64_t>(), 2) << block;
  }
}

TEST(Gptq, ASingularHessianIsDampedUntilItCanBeFactored) {
  const at::Tensor weight = Normal(4, 64);
  const at::Tensor one = at::ones({1, 64});
  const PackedWeight packed =
      QuantizeGptq(weight, at::matmul(one.t(), one), {Format::Float4()}, {.damping = 0})[0];
  EXPECT_TRUE(at::isfinite(Values(packed)).all().item<bool>());
}

TEST(Gptq, WhatItCannotDoIsRefused) {
  const at::Tensor weight = Normal(4, 64);
  const auto message = [&](const at::Tensor& hessian, const Format& format) -> std::string {
    try {
      QuantizeGptq(weight, hessian, {format});
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  at::Tensor broken = at::eye(64);
  broken[1][1] = std::numeric_limits<double>::infinity();
  EXPECT_THAT(message(broken, Format::NormalFloat(4)), HasSubstr("not finite"));
  EXPECT_THAT(message(at::eye(65), Format::NormalFloat(4)), HasSubstr("65 inputs"));
  EXPECT_THAT(message(at::eye(64), Format::Integer8Row()), HasSubstr("int8-row"));
}

// What the memory plan counts for it (model/memory_plan.cc).
TEST(Gptq, FactorsWithinThreeMatricesInDoublePrecision) {
  constexpr int64_t kCols = 768;
  const at::Tensor weight = Normal(2, kCols);
  const at::Tensor hessian = Hessian(CorrelatedInputs(2 * kCols, kCols, 1)).to(at::kFloat);
  const int64_t peak =
      PeakTensorBytes([&] { QuantizeGptq(weight, hessian, {Format::IntegerGroup(4, 64)}); });
  const int64_t matrix = 8 * kCols * kCols;
  EXPECT_LE(peak, 3 * matrix + matrix / 100);
  EXPECT_GT(peak, 2 * matrix);  // Or the meter sees nothing.
}

}  // namespace
}  // namespace qpruner::engine
