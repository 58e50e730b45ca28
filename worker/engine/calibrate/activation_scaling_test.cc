#include "worker/engine/calibrate/activation_scaling.h"

#include <ATen/ATen.h>

#include "gtest/gtest.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {
namespace {

// A model in which a few channels of the norms are large, as in trained models.
MemoryWeightSource ModelWithOutliers() {
  MemoryWeightSource model = RandomModel({.hidden = 32, .intermediate = 64});
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < model.config().num_blocks(); ++block) {
    BlockWeights& weights = blocks.emplace_back(model.Block(block));
    weights.attention_norm = weights.attention_norm.clone();
    weights.mlp_norm = weights.mlp_norm.clone();
    weights.attention_norm[3] *= 12;
    weights.mlp_norm[7] *= 15;
  }
  return MemoryWeightSource(model.config(), blocks, model.Embedding(), model.FinalNorm(),
                            model.Head());
}

double Divergence(WeightSource& model, WeightSource& changed, const TokenBatch& batch) {
  const at::Tensor log_p = at::log_softmax(Logits(model, batch.ids).to(at::kDouble), -1);
  const at::Tensor log_q = at::log_softmax(Logits(changed, batch.ids).to(at::kDouble), -1);
  return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item<double>();
}

TEST(ActivationScaling, TheScaledModelComputesTheSame) {
  MemoryWeightSource model = ModelWithOutliers();
  const std::vector<TokenBatch> batches = {RandomBatch({30, 21}, 40, 5)};
  const ActivationScaling scaling =
      FindActivationScaling(model, batches, Format::IntegerGroup(3, 32));
  ASSERT_EQ(scaling.blocks.size(), 3u);
  ScaledSource scaled(model, scaling.blocks);
  EXPECT_FALSE(at::equal(scaled.Block(0).weight[LinearKind::kQuery],
                         model.Block(0).weight[LinearKind::kQuery]));
  const at::Tensor expected = Logits(model, batches[0].ids);
  // float32 rounding of factors that are not powers of two.
  EXPECT_TRUE(at::allclose(Logits(scaled, batches[0].ids), expected, 1e-4,
                           1e-5 * expected.abs().max().item<double>()));
}

TEST(ActivationScaling, LowersTheErrorOfQuantization) {
  MemoryWeightSource model = ModelWithOutliers();
  const std::vector<TokenBatch> batches = {RandomBatch({40, 40, 40, 40}, 40, 5)};
  const TokenBatch fresh = RandomBatch({40, 40, 40, 40}, 40, 6);
  for (const Format& format : {Format::IntegerGroup(3, 32), Format::NormalFloat(4)}) {
    const ActivationScaling scaling = FindActivationScaling(model, batches, format);
    EXPECT_LT(scaling.error_scaled, 0.9 * scaling.error_unscaled) << FormatName(format);
    ScaledSource scaled(model, scaling.blocks);
    const FormatAssignment assignment = UniformAssignment(model.config(), format);
    const auto plain_quantized = QuantizedSource::Create(model, assignment);
    const auto scaled_quantized = QuantizedSource::Create(scaled, assignment);
    ASSERT_TRUE(plain_quantized.ok() && scaled_quantized.ok());
    EXPECT_LT(Divergence(model, **scaled_quantized, fresh),
              Divergence(model, **plain_quantized, fresh))
        << FormatName(format);
  }
}

TEST(ActivationScaling, AGridOfOneStepScalesNothing) {
  MemoryWeightSource model = ModelWithOutliers();
  const ActivationScaling scaling = FindActivationScaling(model, {RandomBatch({10}, 40, 5)},
                                                          Format::NormalFloat(4), /*grid_size=*/1);
  EXPECT_EQ(scaling.error_scaled, scaling.error_unscaled);
  ScaledSource scaled(model, scaling.blocks);
  for (LinearKind kind : kLinearKinds) {
    EXPECT_TRUE(at::equal(scaled.Block(1).weight[kind], model.Block(1).weight[kind]));
  }
}

}  // namespace
}  // namespace qpruner::engine
