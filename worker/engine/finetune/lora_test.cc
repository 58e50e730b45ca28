#include "worker/engine/finetune/lora.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kRank = 8;

at::Tensor Nf4(const at::Tensor& weight) {
  const Format format = Format::NormalFloat(4);
  return Dequantize(Quantize(weight, format), at::kFloat, at::kCPU);
}

double Distance(const at::Tensor& a, const at::Tensor& b) {
  return at::linalg_norm(a - b).item<double>();
}

// PEFT's loftq_init with bitsandbytes' NF4: see tests/compat/loftq_golden.py.
class LoftqGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
    auto reader = SafetensorsReader::Open(std::string(folder != nullptr ? folder : ".") +
                                          "/tests/golden/loftq_peft.safetensors");
    ASSERT_TRUE(reader.ok()) << reader.status();
    reader_ = *std::move(reader);
  }
  at::Tensor Golden(const std::string& name) {
    return TensorFromView(reader_->tensors().at(std::string(GetParam()) + "." + name), reader_);
  }
  std::shared_ptr<SafetensorsReader> reader_;
};

TEST_P(LoftqGoldenTest, FirstStepEqualsPeft) {
  const at::Tensor weight = Golden("weight");
  const at::Tensor fallback = at::zeros({kRank, weight.size(1)});
  const LoftqStart start = InitLoftq(weight, Nf4, kRank, /*scale=*/1, 1, fallback);
  EXPECT_TRUE(at::equal(start.base_before_quantization, weight));
  EXPECT_TRUE(at::equal(Nf4(start.base_before_quantization), Golden("1.base")));
  const at::Tensor a = Golden("1.a");
  const at::Tensor b = Golden("1.b");
  EXPECT_TRUE(at::allclose(at::matmul(start.b, start.a), at::matmul(b, a), 0, 1e-5));
  // A singular vector's sign is free; both factors of a direction turn together.
  const at::Tensor sign = (start.a * a).sum(1).sign();
  EXPECT_TRUE(at::allclose(start.a * sign.unsqueeze(1), a, 0, 1e-5));
  EXPECT_TRUE(at::allclose(start.b * sign, b, 0, 1e-5));
}

TEST_P(LoftqGoldenTest, ThirdStepEqualsPeft) {
  const at::Tensor weight = Golden("weight");
  const at::Tensor fallback = at::zeros({kRank, weight.size(1)});
  const LoftqStart start = InitLoftq(weight, Nf4, kRank, 1, 3, fallback);
  // A code at a rounding boundary may fall to the other side: the norm of what differs is bounded
  // by a few such codes, not each element.
  EXPECT_LT(Distance(Nf4(start.base_before_quantization), Golden("3.base")),
            0.05 * Distance(weight, Golden("3.base")));
  EXPECT_LT(Distance(at::matmul(start.b, start.a), at::matmul(Golden("3.b"), Golden("3.a"))),
            0.05 * Distance(weight, Golden("3.base")));
}

TEST_P(LoftqGoldenTest, TheScaleIsDividedOut) {
  const at::Tensor weight = Golden("weight");
  const at::Tensor fallback = at::zeros({kRank, weight.size(1)});
  for (int iterations : {1, 2}) {
    const LoftqStart plain = InitLoftq(weight, Nf4, kRank, 1, iterations, fallback);
    const LoftqStart scaled = InitLoftq(weight, Nf4, kRank, 2, iterations, fallback);
    const at::Tensor model =
        Nf4(scaled.base_before_quantization) + 2 * at::matmul(scaled.b, scaled.a);
    EXPECT_NEAR(Distance(weight, model), scaled.error, 1e-6);
    EXPECT_NEAR(scaled.error, plain.error, 1e-4 * plain.error);
    EXPECT_LT(scaled.error, 0.9 * scaled.error_quantized);
    EXPECT_NEAR(scaled.error_quantized, Distance(weight, Nf4(weight)), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LoftqGoldenTest, ::testing::Values("wide", "tall"));

TEST(LoftqTest, DirectionsThatDoNotExistStartAsZeroAdapters) {
  const at::Tensor weight = at::tensor({1., 2., 3., 4., 5., 6.}, at::kFloat).view({2, 3});
  const at::Tensor fallback = at::full({4, 3}, 0.5);
  // Nothing is lost: no direction to take.
  const LoftqStart lossless = InitLoftq(
      weight, [](const at::Tensor& w) { return w; }, 4, 2, 1, fallback);
  EXPECT_TRUE(at::equal(lossless.a, fallback));
  EXPECT_EQ(lossless.b.abs().max().item<double>(), 0);
  EXPECT_EQ(lossless.error, 0);
  // Everything is lost, and two directions hold it all.
  const LoftqStart narrow = InitLoftq(
      weight, [](const at::Tensor& w) { return at::zeros_like(w); }, 4, 2, 1, fallback);
  EXPECT_TRUE(at::allclose(2 * at::matmul(narrow.b, narrow.a), weight, 1e-5, 1e-5));
  EXPECT_TRUE(at::equal(narrow.a.narrow(0, 2, 2), fallback.narrow(0, 2, 2)));
  EXPECT_NEAR(narrow.error, 0, 1e-5);
}

TEST(ZeroAdapterTest, FollowsTheSeedWithinItsBound) {
  const ModelConfig config = RandomModel().config();
  const LoraAdapter one = ZeroAdapter(config, {.rank = 4, .seed = 1}, at::kCPU);
  const LoraAdapter again = ZeroAdapter(config, {.rank = 4, .seed = 1}, at::kCPU);
  const LoraAdapter other = ZeroAdapter(config, {.rank = 4, .seed = 2}, at::kCPU);
  const at::Tensor& a = one.a[1][LinearKind::kUp];
  EXPECT_TRUE(at::equal(a, again.a[1][LinearKind::kUp]));
  EXPECT_FALSE(at::equal(a, other.a[1][LinearKind::kUp]));
  EXPECT_FALSE(at::equal(a, one.a[1][LinearKind::kGate]));
  EXPECT_FALSE(at::equal(a, one.a[2][LinearKind::kUp]));
  EXPECT_LE(a.abs().max().item<double>(), 0.25);  // 1 / sqrt(16)
  EXPECT_GT(a.abs().max().item<double>(), 0.2);
  EXPECT_EQ(one.b[1][LinearKind::kUp].abs().max().item<double>(), 0);
  EXPECT_EQ(one.parameter_count(), 3 * 4 * ((16 + 24) + 2 * (16 + 12) + (24 + 16) + 3 * (16 + 24)));
}

TEST(MergedSourceTest, EqualsTheAdapterBesideTheBase) {
  MemoryWeightSource model = RandomModel();
  LoraAdapter adapter = ZeroAdapter(model.config(), {.rank = 4, .alpha = 12}, at::kCPU);
  for (auto& b : adapter.b) {
    for (LinearKind kind : kLinearKinds) b[kind] = at::ones_like(b[kind]) * 0.1;
  }
  const TokenBatch batch = RandomBatch({10}, 40, 3);
  int64_t call = 0;
  const at::Tensor beside =
      Logits(model, batch.ids,
             [&](LinearKind kind, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
               return LoraLinear(adapter, call++ / kLinearKindCount)(kind, x, w, b);
             });
  MergedSource merged(model, adapter);
  const at::Tensor found = Logits(merged, batch.ids);
  EXPECT_GT((found - Logits(model, batch.ids)).abs().max().item<double>(), 0.1);
  EXPECT_LT((found - beside).abs().max().item<double>(), 1e-5 * beside.abs().max().item<double>());
}

// For every format that loses something, with the base that belongs to the adapter stored (T > 1:
// not the plain one).
TEST(StartAdapterTest, LoftqBringsTheModelCloserThanQuantizationLeavesIt) {
  // Wide enough that NF4's blocks and a rank of 8 leave something to approximate.
  MemoryWeightSource model = RandomModel({.hidden = 64, .head_dim = 8, .intermediate = 96});
  for (const Format& format : AllFormats()) {
    if (format == Format::Bfloat16()) continue;
    FormatAssignment assignment = UniformAssignment(model.config(), format);
    assignment["model.layers.1.mlp.up_proj"] = Format::Bfloat16();
    for (int iterations : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(FormatName(format), ", ", iterations));
      auto quantized = QuantizedSource::Create(model, assignment);
      ASSERT_TRUE(quantized.ok()) << quantized.status();
      const AdapterStart start = StartAdapter(model, **quantized, AdapterInit::kLoftq, iterations,
                                              {.rank = 8, .alpha = 16});
      EXPECT_LT(start.error, 0.95 * start.error_quantized);
      // What is stored and the adapter together are as close as was said.
      MergedSource merged(**quantized, start.adapter);
      double square = 0;
      for (int64_t block = 0; block < 3; ++block) {
        const BlockWeights original = model.Block(block);
        const BlockWeights found = merged.Block(block);
        for (LinearKind kind : kLinearKinds) {
          const double distance = Distance(original.weight[kind], found.weight[kind]);
          square += distance * distance;
        }
      }
      EXPECT_NEAR(std::sqrt(square), start.error, 1e-4 * start.error);
      EXPECT_EQ(start.adapter.b[1][LinearKind::kUp].abs().max().item<double>(), 0);
    }
  }
  const FormatAssignment assignment = UniformAssignment(model.config(), Format::NormalFloat(4));
  auto quantized = QuantizedSource::Create(model, assignment);
  const AdapterStart zero = StartAdapter(model, **quantized, AdapterInit::kZero, 1, {});
  EXPECT_EQ(zero.error, zero.error_quantized);
  EXPECT_GT(zero.error, 0);
}

}  // namespace
}  // namespace qpruner::engine
