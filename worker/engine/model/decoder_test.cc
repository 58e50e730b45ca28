#include "worker/engine/model/decoder.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"

namespace qpruner::engine {
namespace {

// Logits of transformers in float32; see tests/compat/logits_golden.py. The tolerance leaves room
// for another order of summation, and is far below the effect of any wrong sign, scale or head.
constexpr double kRelativeTolerance = 1e-4;

void ExpectGoldenLogits(const std::string& model_folder, const std::string& golden_path) {
  auto checkpoint = Checkpoint::Open(model_folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_TRUE((*checkpoint)->CheckFinite().ok());
  auto golden = SafetensorsReader::Open(golden_path);
  ASSERT_TRUE(golden.ok()) << golden.status();
  const at::Tensor ids = TensorFromView((*golden)->tensors().at("ids"), nullptr);
  const at::Tensor expected = TensorFromView((*golden)->tensors().at("logits"), nullptr);

  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  int64_t done = 0;
  // The same sequence twice in one batch, and a shorter, padded one: rows must not see each other.
  const at::Tensor padded = at::cat({ids.narrow(0, 0, 5), at::zeros({ids.size(0) - 5}, at::kLong)});
  const std::vector<at::Tensor> hidden =
      ForwardHidden(*source, {at::stack({ids, padded}), ids.unsqueeze(0)},
                    [&](int64_t block) { EXPECT_EQ(block, done++); });
  EXPECT_EQ(done, source->config().num_blocks());
  ASSERT_EQ(hidden.size(), 2u);
  const double scale = expected.abs().max().item<double>();
  const auto error = [&](const at::Tensor& h, const at::Tensor& logits) {
    return (HeadLogits(h, source->Head()) - logits).abs().max().item<double>() / scale;
  };
  EXPECT_LE(error(hidden[0][0], expected), kRelativeTolerance);
  EXPECT_LE(error(hidden[0][1].narrow(0, 0, 5), expected.narrow(0, 0, 5)), kRelativeTolerance);
  EXPECT_LE(error(hidden[1][0], expected), kRelativeTolerance);
  std::printf("%s: max abs error %.2e of max |logit|\n", model_folder.c_str(),
              error(hidden[1][0], expected));
}

TEST(GoldenLogitsTest, Stories260k) {
  ExpectGoldenLogits("data/models/stories260k", "tests/golden/logits/stories260k.safetensors");
}

TEST(GoldenLogitsTest, Tinystories656k) {
  const char* shared = std::getenv("QPRUNER_SHARED_DIR");
  const std::string folder =
      std::string(shared == nullptr ? "../shared" : shared) + "/data/models/tinystories-656k";
  if (::access(folder.c_str(), F_OK) != 0) GTEST_SKIP() << "No such model here: " << folder;
  ExpectGoldenLogits(folder, "tests/golden/logits/tinystories-656k.safetensors");
}

class TinyFamilyTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TinyFamilyTest, AgreesWithTransformers) {
  const std::string folder = std::string("tests/golden/logits/tiny-") + GetParam();
  ExpectGoldenLogits(folder, folder + "/logits.safetensors");
}

INSTANTIATE_TEST_SUITE_P(Families, TinyFamilyTest,
                         ::testing::Values("llama3", "mistral", "qwen2", "qwen3"));

// Stories260k in double precision.
TEST(BlockForwardTest, QueryHeadReadsTheKeyValueHeadOfItsGroup) {
  auto checkpoint = Checkpoint::Open("data/models/stories260k");
  ASSERT_TRUE(checkpoint.ok());
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kDouble);
  const ModelConfig& config = source->config();
  const BlockWeights full = source->Block(0);
  const int64_t head_dim = config.head_dim;
  const RotaryTables rotary = MakeRotaryTables(config, 12, at::kCPU, at::kDouble);
  at::manual_seed(3);
  const at::Tensor x = at::randn({2, 12, config.hidden_size}, at::kDouble);

  // Zeroing o_proj's columns of query heads 2 and 3 equals deleting group 1: those two query heads
  // and key/value head 1.
  BlockWeights masked = full;
  masked.weight[LinearKind::kOutput] = full.weight[LinearKind::kOutput].clone();
  masked.weight[LinearKind::kOutput].narrow(1, 2 * head_dim, 2 * head_dim).zero_();
  const auto without = [&](const at::Tensor& w, int64_t dim, int64_t first, int64_t count) {
    const int64_t end = (first + count) * head_dim;
    return at::cat({w.narrow(dim, 0, first * head_dim), w.narrow(dim, end, w.size(dim) - end)},
                   dim);
  };
  BlockWeights pruned = full;
  pruned.weight[LinearKind::kQuery] = without(full.weight[LinearKind::kQuery], 0, 2, 2);
  pruned.weight[LinearKind::kKey] = without(full.weight[LinearKind::kKey], 0, 1, 1);
  pruned.weight[LinearKind::kValue] = without(full.weight[LinearKind::kValue], 0, 1, 1);
  pruned.weight[LinearKind::kOutput] = without(full.weight[LinearKind::kOutput], 1, 2, 2);
  const at::Tensor expected = BlockForward(config, config.blocks[0], masked, rotary, x);
  const at::Tensor actual = BlockForward(
      config, {.num_heads = 6, .num_kv_heads = 3, .intermediate_size = 172}, pruned, rotary, x);
  EXPECT_LT((expected - actual).abs().max().item<double>(), 1e-12);
  EXPECT_GT(
      (actual - BlockForward(config, config.blocks[0], full, rotary, x)).abs().max().item<double>(),
      1e-3);
}

TEST(BlockForwardTest, CallsEveryLinearOnceInOrder) {
  auto checkpoint = Checkpoint::Open("data/models/stories260k");
  ASSERT_TRUE(checkpoint.ok());
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  const ModelConfig& config = source->config();
  std::vector<LinearKind> seen;
  BlockForward(config, config.blocks[0], source->Block(0),
               MakeRotaryTables(config, 4, at::kCPU, at::kFloat),
               at::randn({1, 4, config.hidden_size}),
               [&](LinearKind kind, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
                 seen.push_back(kind);
                 return PlainLinear(kind, x, w, b);
               });
  EXPECT_THAT(seen, ::testing::ElementsAreArray(kLinearKinds));
}

TEST(BlockForwardTest, GradientsEqualFiniteDifferences) {
  auto checkpoint = Checkpoint::Open("data/models/stories260k");
  ASSERT_TRUE(checkpoint.ok());
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kDouble);
  const ModelConfig& config = source->config();
  const RotaryTables rotary = MakeRotaryTables(config, 6, at::kCPU, at::kDouble);
  at::manual_seed(4);
  const at::Tensor x = at::randn({1, 6, config.hidden_size}, at::kDouble);
  const at::Tensor probe = at::randn_like(x);
  const BlockWeights base = source->Block(1);
  const auto loss = [&](const BlockWeights& weights) {
    return (BlockForward(config, config.blocks[1], weights, rotary, x) * probe).sum();
  };
  for (LinearKind kind : kLinearKinds) {
    BlockWeights weights = base;
    at::Tensor leaf = base.weight[kind].clone().set_requires_grad(true);
    weights.weight[kind] = leaf;
    loss(weights).backward();
    const at::Tensor direction = at::randn_like(base.weight[kind]);
    constexpr double kStep = 1e-5;
    weights.weight[kind] = base.weight[kind] + kStep * direction;
    const double up = loss(weights).item<double>();
    weights.weight[kind] = base.weight[kind] - kStep * direction;
    const double numeric = (up - loss(weights).item<double>()) / (2 * kStep);
    const double analytic = (leaf.grad() * direction).sum().item<double>();
    // Central differences err by step squared.
    EXPECT_NEAR(analytic, numeric, 1e-6 * (1 + std::abs(numeric))) << LinearSuffix(kind);
  }
}

TEST(WeightSourceTest, MappedWeightsAreNotCopiedAndOutliveTheSource) {
  at::Tensor norm;
  {
    auto checkpoint = Checkpoint::Open("data/models/stories260k");
    ASSERT_TRUE(checkpoint.ok());
    auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
    norm = source->FinalNorm();
    EXPECT_EQ(norm.const_data_ptr(),
              static_cast<const void*>((*checkpoint)->tensor("model.norm.weight").bytes.data()));
    EXPECT_TRUE(source->Head().equal(source->Embedding()));
  }
  EXPECT_TRUE(at::isfinite(norm).all().item<bool>());
}

TEST(WeightSourceTest, MemorySourceChecksShapes) {
  auto checkpoint = Checkpoint::Open("data/models/stories260k");
  ASSERT_TRUE(checkpoint.ok());
  auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  MemoryWeightSource memory = LoadIntoMemory(*source);
  const at::Tensor ids = at::arange(8, at::kLong).unsqueeze(0);
  EXPECT_TRUE(ForwardHidden(memory, {ids})[0].equal(ForwardHidden(*source, {ids})[0]));

  std::vector<BlockWeights> blocks;
  for (int64_t i = 0; i < memory.config().num_blocks(); ++i) blocks.push_back(memory.Block(i));
  blocks[2].weight[LinearKind::kUp] = blocks[2].weight[LinearKind::kUp].narrow(0, 0, 100);
  EXPECT_THROW(MemoryWeightSource(memory.config(), blocks, memory.Embedding(), memory.FinalNorm()),
               c10::Error);
}

}  // namespace
}  // namespace qpruner::engine
