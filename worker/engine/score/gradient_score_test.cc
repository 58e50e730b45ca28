#include "worker/engine/score/gradient_score.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/memory_plan.h"
#include "worker/engine/testing/tensor_memory.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;

TEST(SearchGroupsTest, NamesAndOrder) {
  const auto fused = MakeSearchGroups(2, SearchGranularity::kFusedGroup);
  ASSERT_EQ(fused.size(), 8u);
  EXPECT_EQ(fused[0].name, "model.layers.0.attn_qkv");
  EXPECT_EQ(fused[1].name, "model.layers.0.attn_out");
  EXPECT_EQ(fused[2].name, "model.layers.0.mlp_gate_up");
  EXPECT_EQ(fused[7].name, "model.layers.1.mlp_down");
  EXPECT_THAT(fused[6].linears, ElementsAre(LinearKind::kGate, LinearKind::kUp));
  const auto blocks = MakeSearchGroups(2, SearchGranularity::kBlock);
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(blocks[1].name, "model.layers.1");
  EXPECT_EQ(blocks[1].linears.size(), 7u);
  const auto linears = MakeSearchGroups(2, SearchGranularity::kLinear);
  ASSERT_EQ(linears.size(), 14u);
  EXPECT_EQ(linears[13].name, "model.layers.1.mlp.down_proj");
}

// The definition on one full graph: every linear of the model is a function of its output's change.
TEST(GradientScoreTest, EqualsPlainAutograd) {
  MemoryWeightSource model = RandomModel();
  const std::vector<TokenBatch> batches = {RandomBatch({8, 5, 11}, 40, 9)};
  const std::vector<LinearGroup> groups = MakeSearchGroups(3, SearchGranularity::kFusedGroup);
  const std::vector<Format> formats = {Format::NormalFloat(4), Format::Integer8Row()};

  std::vector<at::Tensor> inputs, outputs;
  std::vector<at::Tensor> weights;
  // Some tensor of the graph must require grad.
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < 3; ++block) blocks.push_back(model.Block(block));
  MemoryWeightSource differentiable(model.config(), blocks,
                                    model.Embedding().clone().requires_grad_(true),
                                    model.FinalNorm(), model.Head());
  const at::Tensor logits =
      Logits(differentiable, batches[0].ids,
             [&](LinearKind kind, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
               inputs.push_back(x.detach());
               weights.push_back(w);
               outputs.push_back(PlainLinear(kind, x, w, b));
               return outputs.back();
             });
  const at::Tensor loss =
      at::cross_entropy_loss(logits.flatten(0, 1), NextTokenTargets(batches[0]).flatten(), {},
                             at::Reduction::Sum, kNoTarget);
  const auto gradients = torch::autograd::grad({loss}, outputs);

  const auto scores = ScoreByGradient(model, batches, groups, formats);
  constexpr int64_t kTokens = 7 + 4 + 10;
  for (size_t group = 0; group < groups.size(); ++group) {
    for (size_t format = 0; format < formats.size(); ++format) {
      double expected = 0;
      for (LinearKind kind : groups[group].linears) {
        const size_t i = groups[group].block * kLinearKindCount + static_cast<size_t>(kind);
        const at::Tensor change =
            at::matmul(inputs[i], (RoundToNearest(weights[i], formats[format]) - weights[i]).t());
        expected += (gradients[i] * change).square().sum().item<double>();
      }
      expected /= 2 * kTokens;
      EXPECT_GT(expected, 0);
      EXPECT_NEAR(scores[group][format], expected, 1e-4 * expected) << groups[group].name;
    }
  }
}

TEST(GradientScoreTest, HoldsNoMoreThanTheMemoryPlanCounts) {
  // Wide blocks and few tokens: what formats change is most of it.
  MemoryWeightSource model = RandomModel(
      {.blocks = 2, .hidden = 128, .head_dim = 16, .heads = 8, .kv_heads = 8, .intermediate = 512});
  const std::vector<TokenBatch> batches = {RandomBatch({32}, 40, 9)};
  const std::vector<LinearGroup> groups = MakeSearchGroups(2, SearchGranularity::kBlock);
  std::vector<Format> formats;
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) formats.push_back(Format::IntegerGroup(bits, 64));
  const int64_t peak = PeakTensorBytes([&] { ScoreByGradient(model, batches, groups, formats); });
  const auto expected = [&](int64_t compared) {
    const MemoryCosts costs = EstimateMemory(model.config(), {.formats = compared});
    // The process and the logits are no part of what is measured.
    const MemoryCosts none = EstimateMemory({.vocab_size = 1, .hidden_size = 1}, {});
    return costs.fixed_bytes - none.fixed_bytes + 32 * costs.position_bytes;
  };
  EXPECT_LE(peak, expected(7));
  EXPECT_GT(peak, expected(2));
}

}  // namespace
}  // namespace qpruner::engine
