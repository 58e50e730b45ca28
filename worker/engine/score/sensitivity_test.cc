#include "worker/engine/score/sensitivity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/score/variant_divergence.h"

namespace qpruner::engine {
namespace {

// The definition: the whole model run again for each variant, full logits.
double PlainDivergence(MemoryWeightSource& model, const LinearGroup& group, const Format& format,
                       const std::vector<TokenBatch>& batches) {
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < model.config().num_blocks(); ++block) {
    blocks.push_back(model.Block(block));
  }
  for (LinearKind kind : group.linears) {
    at::Tensor& weight = blocks[group.block].weight[kind];
    weight = RoundToNearest(weight, format);
  }
  MemoryWeightSource changed(model.config(), blocks, model.Embedding(), model.FinalNorm(),
                             model.Head());
  double nats = 0;
  int64_t tokens = 0;
  for (const TokenBatch& batch : batches) {
    const at::Tensor log_p = at::log_softmax(Logits(model, batch.ids).to(at::kDouble), -1);
    const at::Tensor log_q = at::log_softmax(Logits(changed, batch.ids).to(at::kDouble), -1);
    const at::Tensor divergence = (log_p.exp() * (log_p - log_q)).sum(-1);
    const at::Tensor counted = NextTokenTargets(batch).ne(kNoTarget);
    nats += divergence.masked_select(counted).sum().item<double>();
    tokens += counted.sum().item<int64_t>();
  }
  return nats / static_cast<double>(tokens);
}

TEST(SensitivityTest, EqualsRunningTheWholeModelForEachVariant) {
  MemoryWeightSource model = RandomModel();
  const std::vector<TokenBatch> batches = {RandomBatch({8, 5}, 40, 9), RandomBatch({12}, 40, 10)};
  const std::vector<Format> formats = {Format::NormalFloat(4), Format::Integer8Row(),
                                       Format::Bfloat16()};
  for (SearchGranularity granularity :
       {SearchGranularity::kBlock, SearchGranularity::kFusedGroup}) {
    const std::vector<LinearGroup> groups = MakeSearchGroups(3, granularity);
    double last = 0;
    const auto found = MeasureSensitivity(model, batches, groups, formats, RoundingToNearest(),
                                          [&](double fraction) {
                                            EXPECT_GT(fraction, last);
                                            last = fraction;
                                          });
    EXPECT_DOUBLE_EQ(last, 1);
    ASSERT_EQ(found.size(), groups.size());
    for (size_t group = 0; group < groups.size(); ++group) {
      for (size_t format = 0; format < formats.size(); ++format) {
        const double expected = PlainDivergence(model, groups[group], formats[format], batches);
        // A divergence is a difference of float32 log-probabilities: about 1e-6 nats of rounding.
        EXPECT_NEAR(found[group][format], expected, 1e-3 * expected + 2e-6)
            << groups[group].name << " " << FormatName(formats[format]);
      }
      EXPECT_GT(found[group][0], found[group][1]);
    }
  }
}

TEST(SensitivityTest, GoesOnBehindTheBlocksThatAreMeasured) {
  MemoryWeightSource model = RandomModel();
  const std::vector<TokenBatch> batches = {RandomBatch({8, 5}, 40, 9), RandomBatch({12}, 40, 10)};
  const std::vector<Format> formats = {Format::NormalFloat(4), Format::Integer8Row()};
  const std::vector<LinearGroup> groups = MakeSearchGroups(3, SearchGranularity::kFusedGroup);
  std::vector<SensitivityProgress> stops;
  const auto whole = MeasureSensitivity(
      model, batches, groups, formats, RoundingToNearest(), {},
      {.on_block = [&](int64_t blocks, const std::vector<std::vector<double>>& known) {
        stops.push_back({.measured_blocks = blocks, .sensitivities = known});
      }});
  ASSERT_EQ(stops.size(), 3u);
  EXPECT_EQ(stops[0].sensitivities[0], whole[0]);
  EXPECT_EQ(stops[0].sensitivities[4], (std::vector<double>{0, 0})) << "of the second block";
  for (const SensitivityProgress& stop : stops) {
    double last = 0;
    EXPECT_EQ(MeasureSensitivity(
                  model, batches, groups, formats, RoundingToNearest(),
                  [&](double fraction) {
                    EXPECT_GT(fraction, last);
                    last = fraction;
                  },
                  stop),
              whole);
    EXPECT_DOUBLE_EQ(last, 1);
  }
}

TEST(SensitivityTest, AFormatThatChangesNothingCostsNothing) {
  MemoryWeightSource model = RandomModel();
  const std::vector<LinearGroup> groups = MakeSearchGroups(3, SearchGranularity::kBlock);
  const auto found = MeasureSensitivity(
      model, {RandomBatch({6}, 40, 9)}, groups, {Format::NormalFloat(4)},
      [](int64_t, LinearKind, const at::Tensor& weight, const Format&) { return weight; });
  for (const auto& of_group : found) EXPECT_EQ(of_group[0], 0);
}

// Below the resolution of float32 log-probabilities a difference has either sign.
TEST(VariantDivergenceTest, IsNeverNegative) {
  MemoryWeightSource model = RandomModel();
  const auto found =
      MeasureVariants(model, {RandomBatch({12, 9}, 40, 9)},
                      [&](int64_t block, const BlockWeights& weights, const VariantVisitor& visit) {
                        for (LinearKind kind : kLinearKinds) {
                          for (const double factor : {1 + 0x1p-23, 1 - 0x1p-23}) {
                            BlockWeights changed = weights;
                            changed.weight[kind] = weights.weight[kind] * factor;
                            visit(model.config().blocks[block], changed);
                          }
                        }
                      });
  for (const auto& of_block : found) {
    for (const double divergence : of_block) EXPECT_GE(divergence, 0);
  }
}

}  // namespace
}  // namespace qpruner::engine
