#include "worker/engine/prune/pruning_plan.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/prune/pruned_source.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PruningCountsTest, KeyValueHeads) {
  EXPECT_EQ(KeptKvHeads(4, 1.0 / 3), 3);
  EXPECT_EQ(KeptKvHeads(8, 0.25), 6);
  EXPECT_EQ(KeptKvHeads(32, 0.25), 24);   // LLM-Pruner's published example.
  EXPECT_EQ(KeptKvHeads(100, 0.29), 71);  // 0.29 * 100 is 28.999... in binary.
  EXPECT_EQ(KeptKvHeads(4, 0), 4);
  EXPECT_EQ(KeptKvHeads(1, 0.99), 1);
}

TEST(PruningCountsTest, MlpChannels) {
  EXPECT_EQ(KeptMlpChannels(11008, 0.25, 64), 8256);  // Exact in LLM-Pruner too.
  EXPECT_EQ(KeptMlpChannels(11008, 0.6, 64), 4416);   // 4403.2 there: odd, slow.
  EXPECT_EQ(KeptMlpChannels(172, 1.0 / 3, 32), 128);  // 114.7: 128 is nearer than 96.
  EXPECT_EQ(KeptMlpChannels(11008, 0.39, 1), 6714);   // 6714.88: truncated, as in LLM-Pruner.
  EXPECT_EQ(KeptMlpChannels(172, 0, 32), 172);        // Nothing asked for, nothing removed.
  EXPECT_EQ(KeptMlpChannels(172, 0.99, 32), 32);      // Never to 0.
  EXPECT_EQ(KeptMlpChannels(180, 0.01, 32), 180);     // 192 would be wider than the block.
}

std::vector<BlockImportance> Descending(const ModelConfig& config) {
  std::vector<BlockImportance> importance;
  for (const BlockShape& shape : config.blocks) {
    importance.push_back({at::arange(shape.num_kv_heads, 0, -1, at::kDouble),
                          at::arange(shape.intermediate_size, 0, -1, at::kDouble)});
  }
  return importance;
}

TEST(PruningPlanTest, KeepsTheHighestAscending) {
  const ModelConfig config = RandomModel({.blocks = 1, .intermediate = 8}).config();
  std::vector<BlockImportance> importance(1);
  importance[0].kv_heads = at::tensor({5., 1., 3.}, at::kDouble);
  importance[0].mlp_channels = at::tensor({1., 9., 2., 9., 0., 5., 2., 7.}, at::kDouble);
  auto plan = MakePruningPlan(config, importance, {.ratio = 0.375, .alignment = 1});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->blocks[0].kv_heads, ElementsAre(0, 2));
  // 5 stay; of the two scores of 2 the earlier stays.
  EXPECT_THAT(plan->blocks[0].mlp_channels, ElementsAre(1, 2, 3, 5, 7));
}

TEST(PruningPlanTest, PerLayerLeavesTheOthersAlone) {
  const ModelConfig config = RandomModel({.blocks = 4}).config();
  auto plan = MakePruningPlan(config, Descending(config),
                              {.ratio = 0.5, .layout = PruningLayout::kPerLayer, .alignment = 4});
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (int64_t block : {0, 3}) {
    EXPECT_EQ(plan->blocks[block].kv_heads.size(), 3u);
    EXPECT_EQ(plan->blocks[block].mlp_channels.size(), 24u);
  }
  for (int64_t block : {1, 2}) {
    EXPECT_EQ(plan->blocks[block].kv_heads.size(), 2u);
    EXPECT_EQ(plan->blocks[block].mlp_channels.size(), 12u);
  }
}

TEST(PruningPlanTest, GlobalSelectionTakesWhatScoresLeastAnywhere) {
  const ModelConfig config = RandomModel({.blocks = 4, .intermediate = 8}).config();
  std::vector<BlockImportance> importance = Descending(config);
  importance[1].mlp_channels = importance[1].mlp_channels + 100;  // Worth more than any other.
  PruningOptions options{.ratio = 0.5,
                         .layout = PruningLayout::kPerLayer,
                         .alignment = 1,
                         .selection = PruningSelection::kGlobalPerKind};
  auto plan = MakePruningPlan(config, importance, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->blocks[1].mlp_channels.size(), 8u);
  EXPECT_EQ(plan->blocks[2].mlp_channels.size(), 1u);  // All 8 would go; one must stay.
  EXPECT_THAT(plan->blocks[0].mlp_channels, ::testing::SizeIs(8));
  // 3 of 6 heads go: scores 3 3 2 | 2 1 1, of equal ones the earlier block's stays.
  EXPECT_THAT(plan->blocks[1].kv_heads, ElementsAre(0, 1));
  EXPECT_THAT(plan->blocks[2].kv_heads, ElementsAre(0));

  // In one pool of 22 with 11 to go, heads (1 to 3) compete with channels (1 to 8, 101 to 108).
  options.selection = PruningSelection::kGlobal;
  plan = MakePruningPlan(config, importance, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->blocks[1].mlp_channels.size(), 8u);
  EXPECT_EQ(plan->blocks[2].mlp_channels.size(), 3u);
  EXPECT_EQ(plan->blocks[1].kv_heads.size(), 1u);
}

TEST(PruningPlanTest, UniformEqualizesBlocksOfDifferentShapes) {
  ModelConfig config = RandomModel({.blocks = 2}).config();
  config.blocks[0].intermediate_size = 40;
  auto plan = MakePruningPlan(config, Descending(config), {.ratio = 0.5, .alignment = 4});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->blocks[0].mlp_channels.size(), 12u);
  EXPECT_EQ(plan->blocks[1].mlp_channels.size(), 12u);
}

TEST(PruningPlanTest, RefusalsNameTheRule) {
  const ModelConfig config = RandomModel({.blocks = 4}).config();
  const auto refusal = [&](const PruningOptions& options) {
    return std::string(CheckPruning(config, options).message());
  };
  EXPECT_THAT(refusal({.ratio = 1}), HasSubstr("pruning.ratio must be in [0, 1)"));
  EXPECT_THAT(refusal({.ratio = -0.1}), HasSubstr("pruning.ratio"));
  EXPECT_THAT(refusal({.ratio = std::nan("")}), HasSubstr("pruning.ratio"));
  EXPECT_THAT(refusal({.ratio = 0.5, .alignment = 32}), HasSubstr("MLP width, which is 24"));
  EXPECT_THAT(refusal({.ratio = 0.5, .alignment = 0}), HasSubstr("pruning.alignment"));
  EXPECT_THAT(refusal({.ratio = 0.5, .alignment = 1, .selection = PruningSelection::kGlobal}),
              HasSubstr("PER_LAYER"));
  EXPECT_THAT(refusal({.ratio = 0.5, .alignment = 1, .steps = 0}), HasSubstr("pruning.steps"));
  const PruningOptions range{
      .ratio = 0.5, .layout = PruningLayout::kPerLayer, .alignment = 1, .first_block = 3};
  EXPECT_THAT(refusal(range), HasSubstr("last_block"));
  EXPECT_EQ(refusal({.ratio = 0, .alignment = 32}), "");

  std::vector<BlockImportance> importance = Descending(config);
  importance[2].mlp_channels[7] = NAN;
  const auto plan = MakePruningPlan(config, importance, {.ratio = 0.5, .alignment = 1});
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("block 2"));
}

// The model whose pruned parts are silenced instead of deleted: no head or channel that the plan
// drops reaches the residual stream.
MemoryWeightSource Silenced(WeightSource& source, const PruningPlan& plan) {
  const ModelConfig& config = source.config();
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    const BlockShape& shape = config.blocks[block];
    const int64_t width = shape.num_heads / shape.num_kv_heads * config.head_dim;
    at::Tensor heads = at::zeros({shape.num_heads * config.head_dim}, source.dtype());
    for (int64_t head : plan.blocks[block].kv_heads) heads.narrow(0, head * width, width).fill_(1);
    at::Tensor channels = at::zeros({shape.intermediate_size}, source.dtype());
    for (int64_t channel : plan.blocks[block].mlp_channels) channels[channel] = 1;
    BlockWeights weights = source.Block(block);
    weights.weight[LinearKind::kOutput] = weights.weight[LinearKind::kOutput] * heads;
    weights.weight[LinearKind::kDown] = weights.weight[LinearKind::kDown] * channels;
    blocks.push_back(weights);
  }
  return MemoryWeightSource(config, blocks, source.Embedding(), source.FinalNorm(),
                            config.tie_word_embeddings ? at::Tensor() : source.Head());
}

// Whole key/value groups were deleted, and only those, if this equals silencing them.
void ExpectDeletingEqualsSilencing(WeightSource& source, const PruningOptions& options,
                                   const std::vector<int64_t>& lengths) {
  const TokenBatch batch = RandomBatch(lengths, source.config().vocab_size, 7);
  const auto importance = ScoreGroups(source, {batch}, {});
  auto plan = MakePruningPlan(source.config(), importance, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  PrunedSource pruned(source, *plan);
  MemoryWeightSource loaded = LoadIntoMemory(pruned);  // Checks every shape against its config.
  MemoryWeightSource silenced = Silenced(source, *plan);
  const at::Tensor expected = Logits(silenced, batch.ids);
  const at::Tensor found = Logits(loaded, batch.ids);
  EXPECT_FALSE(at::allclose(found, Logits(source, batch.ids), 1e-2, 1e-2));
  // The same sums with the zeros left out: float32 rounding.
  EXPECT_LT((found - expected).abs().max().item<double>(),
            1e-5 * expected.abs().max().item<double>());
}

TEST(PrunedSourceTest, DeletingEqualsSilencingOnStories260kByAThird) {
  const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
  auto checkpoint =
      Checkpoint::Open(std::string(folder != nullptr ? folder : ".") + "/data/models/stories260k");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto stories = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  ExpectDeletingEqualsSilencing(*stories, {.ratio = 1.0 / 3}, {48, 48});
  auto plan = MakePruningPlan(stories->config(), Descending(stories->config()), {.ratio = 1.0 / 3});
  ASSERT_TRUE(plan.ok());
  PrunedSource pruned(*stories, *plan);
  EXPECT_TRUE(pruned.config().uniform());
  EXPECT_EQ(pruned.config().blocks[0],
            (BlockShape{.num_heads = 6, .num_kv_heads = 3, .intermediate_size = 128}));
}

TEST(PrunedSourceTest, DeletingEqualsSilencingWithBiases) {
  MemoryWeightSource model = RandomModel();
  ExpectDeletingEqualsSilencing(model, {.ratio = 0.5, .alignment = 4}, {9, 9});
  ExpectDeletingEqualsSilencing(model,
                                {.ratio = 0.7,
                                 .layout = PruningLayout::kPerLayer,
                                 .alignment = 4,
                                 .first_block = 0,
                                 .last_block = 2},
                                {9, 9});
}

}  // namespace
}  // namespace qpruner::engine
