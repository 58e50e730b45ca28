#include "worker/engine/prune/importance.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdlib>
#include <fstream>

#include "nlohmann/json.hpp"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

constexpr ImportanceMethod kTaylorMethods[] = {
    ImportanceMethod::kTaylorFirst, ImportanceMethod::kTaylorSecond, ImportanceMethod::kTaylorMixed,
    ImportanceMethod::kTaylorVector};

// The definition, by one full graph for each sample: no streaming, no traces, no padding.
std::vector<ChannelScores> PlainTaylor(WeightSource& source, const std::vector<TokenBatch>& samples,
                                       ImportanceMethod method) {
  const ModelConfig& config = source.config();
  const int64_t block_count = config.num_blocks();
  std::vector<BlockWeights> blocks;
  std::vector<at::Tensor> leaves;
  for (int64_t block = 0; block < block_count; ++block) {
    blocks.push_back(source.Block(block));
    for (LinearKind kind : kLinearKinds) {
      at::Tensor& weight = blocks[block].weight[kind];
      weight = weight.clone().requires_grad_(true);
      leaves.push_back(weight);
    }
  }
  MemoryWeightSource model(config, blocks, source.Embedding(), source.FinalNorm(),
                           config.tie_word_embeddings ? at::Tensor() : source.Head());
  std::vector<at::Tensor> fisher;
  for (const at::Tensor& leaf : leaves) fisher.push_back(at::zeros_like(leaf));
  at::Tensor total = at::zeros({}, leaves[0].options());
  int64_t tokens = 0;
  for (const TokenBatch& sample : samples) {
    const at::Tensor targets = NextTokenTargets(sample).flatten();
    const auto loss = [&](at::Reduction::Reduction reduction) {
      return at::cross_entropy_loss(Logits(model, sample.ids).flatten(0, 1), targets, {}, reduction,
                                    kNoTarget);
    };
    const auto gradients = torch::autograd::grad({loss(at::Reduction::Mean)}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) fisher[i] += gradients[i].square();
    total = total + loss(at::Reduction::Sum);
    tokens += targets.ne(kNoTarget).sum().item<int64_t>();
  }
  const auto g = torch::autograd::grad({total / static_cast<double>(tokens)}, leaves);

  std::vector<ChannelScores> scores(block_count);
  for (int64_t block = 0; block < block_count; ++block) {
    for (LinearKind kind : kLinearKinds) {
      const size_t i = block * kLinearKindCount + static_cast<size_t>(kind);
      const at::Tensor w = leaves[i].detach();
      const at::Tensor a = fisher[i] / static_cast<double>(samples.size());
      const int64_t within = PrunesRows(kind) ? 1 : 0;
      at::Tensor score;
      switch (method) {
        case ImportanceMethod::kTaylorFirst:
          score = (w * g[i]).abs().sum(within);
          break;
        case ImportanceMethod::kTaylorSecond:
          score = (w * a * w).abs().sum(within);
          break;
        case ImportanceMethod::kTaylorMixed:
          score = (w * g[i] - 0.5 * w * a * w).abs().sum(within);
          break;
        default:
          score = (w * g[i]).sum(within).abs();
      }
      scores[block][kind] = score.to(at::kDouble);
    }
  }
  return scores;
}

// Largest difference, relative to the linear's largest score.
double RelativeDifference(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.abs().max()).item<double>();
}

void ExpectScoresNear(const std::vector<ChannelScores>& found,
                      const std::vector<ChannelScores>& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t block = 0; block < found.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      ASSERT_EQ(found[block][kind].sizes(), expected[block][kind].sizes());
      EXPECT_LT(RelativeDifference(found[block][kind], expected[block][kind]), tolerance)
          << LinearName(static_cast<int64_t>(block), kind);
    }
  }
}

std::string SourceDir() {
  const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
  return folder != nullptr ? folder : ".";
}

std::unique_ptr<WeightSource> Stories() {
  auto checkpoint = Checkpoint::Open(SourceDir() + "/data/models/stories260k");
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
}

nlohmann::json Golden(const std::string& name) {
  std::ifstream file(SourceDir() + "/tests/golden/" + name);
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

TEST(TaylorImportanceTest, EqualsPlainAutogradOnARandomModel) {
  MemoryWeightSource model = RandomModel({.dtype = at::kDouble});
  // Samples of different lengths: their mean losses weigh differently than their tokens.
  const TokenBatch first = RandomBatch({9, 4, 7}, 40, 2);
  const TokenBatch second = RandomBatch({5, 12}, 40, 3);
  std::vector<TokenBatch> samples = SplitRows(first);
  for (const TokenBatch& row : SplitRows(second)) samples.push_back(row);
  for (ImportanceMethod method : kTaylorMethods) {
    SCOPED_TRACE(static_cast<int>(method));
    // Double on both sides: rounding alone is left.
    ExpectScoresNear(ScoreChannels(model, {first, second}, method),
                     PlainTaylor(model, samples, method), 1e-9);
  }
}

TEST(TaylorImportanceTest, EqualsPlainAutogradOnStories260k) {
  const auto stories = Stories();
  const TokenBatch batch = RandomBatch({64, 64, 50, 64}, 512, 5);
  for (ImportanceMethod method : kTaylorMethods) {
    SCOPED_TRACE(static_cast<int>(method));
    ExpectScoresNear(ScoreChannels(*stories, {batch}, method),
                     PlainTaylor(*stories, SplitRows(batch), method), 1e-4);
  }
}

// Values of transformers and PyTorch, on real text: see tests/compat/taylor_golden.py.
TEST(TaylorImportanceTest, EqualsTransformersOnStories260k) {
  const nlohmann::json golden = Golden("taylor_stories260k.json");
  const auto stories = Stories();
  const auto sequences = golden["samples"].get<std::vector<std::vector<int64_t>>>();
  std::vector<TokenBatch> batches;
  for (const auto& sequence : sequences) {
    TokenBatch& batch = batches.emplace_back();
    batch.ids = at::tensor(sequence, at::kLong).unsqueeze(0);
    batch.lengths = at::tensor({static_cast<int64_t>(sequence.size())}, at::kLong);
    batch.rows = {static_cast<int64_t>(batches.size()) - 1};
  }
  const std::pair<const char*, ImportanceMethod> methods[] = {
      {"l1", ImportanceMethod::kL1},
      {"l2", ImportanceMethod::kL2},
      {"taylor_first", ImportanceMethod::kTaylorFirst},
      {"taylor_second", ImportanceMethod::kTaylorSecond},
      {"taylor_mixed", ImportanceMethod::kTaylorMixed},
      {"taylor_vector", ImportanceMethod::kTaylorVector}};
  for (const auto& [name, method] : methods) {
    SCOPED_TRACE(name);
    const std::vector<ChannelScores> scores = ScoreChannels(*stories, batches, method);
    for (int64_t block = 0; block < 5; ++block) {
      for (LinearKind kind : kLinearKinds) {
        const auto expected =
            golden["scores"][name][LinearName(block, kind)].get<std::vector<double>>();
        const at::Tensor found =
            scores[block][kind].narrow(0, 0, static_cast<int64_t>(expected.size()));
        EXPECT_LT(RelativeDifference(found, at::tensor(expected, at::kDouble)), 1e-4)
            << LinearName(block, kind);
      }
    }
  }
}

TEST(ImportanceTest, MagnitudesNeedNoSamples) {
  MemoryWeightSource model = RandomModel();
  const auto l1 = ScoreChannels(model, {}, ImportanceMethod::kL1);
  const auto l2 = ScoreChannels(model, {}, ImportanceMethod::kL2);
  const BlockWeights weights = model.Block(1);
  const at::Tensor query = weights.weight[LinearKind::kQuery];
  const at::Tensor down = weights.weight[LinearKind::kDown];
  EXPECT_NEAR(l1[1][LinearKind::kQuery][2].item<double>(), query[2].abs().sum().item<double>(),
              1e-5);
  EXPECT_NEAR(l2[1][LinearKind::kDown][3].item<double>(),
              down.select(1, 3).square().sum().sqrt().item<double>(), 1e-5);
}

TEST(ImportanceTest, ReadersOfOneKeyValueHeadAreAddedUp) {
  // 4 query heads of width 2 on 2 key/value heads: {0, 1} read 0, {2, 3} read 1.
  ModelConfig config;
  config.head_dim = 2;
  const BlockShape shape{.num_heads = 4, .num_kv_heads = 2, .intermediate_size = 2};
  ChannelScores scores;
  scores[LinearKind::kQuery] = at::tensor({1., 2., 3., 4., 5., 6., 7., 8.}, at::kDouble);
  scores[LinearKind::kKey] = at::tensor({10., 20., 30., 40.}, at::kDouble);
  scores[LinearKind::kValue] = at::tensor({1., 1., 1., 1.}, at::kDouble);
  scores[LinearKind::kOutput] = at::tensor({2., 0., 0., 0., 0., 0., 0., 3.}, at::kDouble);
  scores[LinearKind::kGate] = at::tensor({1., 2.}, at::kDouble);
  scores[LinearKind::kUp] = at::tensor({3., 5.}, at::kDouble);
  scores[LinearKind::kDown] = at::tensor({8., 4.}, at::kDouble);
  const auto expect = [&](GroupReduction reduction, std::vector<double> heads,
                          std::vector<double> channels) {
    const BlockImportance found = ReduceToGroups(config, shape, scores, reduction);
    EXPECT_TRUE(at::allclose(found.kv_heads, at::tensor(heads, at::kDouble))) << found.kv_heads;
    EXPECT_TRUE(at::allclose(found.mlp_channels, at::tensor(channels, at::kDouble)))
        << found.mlp_channels;
  };
  // Folded query: {1+3, 2+4 | 5+7, 6+8} = {4, 6 | 12, 14}; folded output: {2, 0 | 0, 3}.
  expect(GroupReduction::kSum, {4 + 6 + 30 + 2 + 2, 12 + 14 + 70 + 2 + 3}, {12, 11});
  expect(GroupReduction::kMean, {44 / 4., 101 / 4.}, {4, 11 / 3.});
  expect(GroupReduction::kMax, {10 + 20, 30 + 40}, {8, 5});
  expect(GroupReduction::kProduct, {4. * 10 * 1 * 2 + 0, 0 + 14. * 40 * 1 * 3}, {24, 40});
  expect(GroupReduction::kFirst, {10, 26}, {1, 2});
}

TEST(ImportanceTest, RandomFollowsTheSeed) {
  MemoryWeightSource model = RandomModel();
  const auto draw = [&](uint64_t seed) {
    return ScoreGroups(model, {}, {.method = ImportanceMethod::kRandom, .seed = seed});
  };
  const auto one = draw(1), again = draw(1), other = draw(2);
  EXPECT_TRUE(at::equal(one[2].mlp_channels, again[2].mlp_channels));
  EXPECT_FALSE(at::equal(one[2].mlp_channels, other[2].mlp_channels));
  EXPECT_FALSE(at::equal(one[0].kv_heads, one[1].kv_heads));
}

}  // namespace
}  // namespace qpruner::engine
