#include "worker/engine/prune/iterative_pruning.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "nlohmann/json.hpp"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

std::string SourceDir() {
  const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
  return folder != nullptr ? folder : ".";
}

nlohmann::json Golden(const std::string& name) {
  std::ifstream file(SourceDir() + "/tests/golden/" + name);
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

const std::map<std::string, ImportanceMethod> kMethods = {
    {"l1", ImportanceMethod::kL1},
    {"l2", ImportanceMethod::kL2},
    {"taylor_first", ImportanceMethod::kTaylorFirst},
    {"taylor_second", ImportanceMethod::kTaylorSecond},
    {"taylor_mixed", ImportanceMethod::kTaylorMixed},
    {"taylor_vector", ImportanceMethod::kTaylorVector}};
const std::map<std::string, GroupReduction> kReductions = {{"sum", GroupReduction::kSum},
                                                           {"mean", GroupReduction::kMean},
                                                           {"max", GroupReduction::kMax},
                                                           {"product", GroupReduction::kProduct},
                                                           {"first", GroupReduction::kFirst}};
const std::map<std::string, PruningSelection> kSelections = {
    {"local", PruningSelection::kLocal},
    {"global", PruningSelection::kGlobal},
    {"global_per_kind", PruningSelection::kGlobalPerKind}};

// Importance, reductions, selections and steps against a transcription of LLM-Pruner's rules that
// deletes real weights of a transformers model: tests/compat/prune_golden.py.
TEST(IterativePruningTest, KeepsWhatTheReferenceKeepsOfStories260k) {
  auto checkpoint = Checkpoint::Open(SourceDir() + "/data/models/stories260k");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  // Double, as the reference: no rounding decides between two close scores.
  const auto stories = MakeCheckpointSource(*checkpoint, at::kCPU, at::kDouble);
  const auto sequences = Golden("taylor_stories260k.json")["samples"].get<std::vector<TokenIds>>();
  TokenBatch batch;
  std::vector<at::Tensor> rows;
  for (const TokenIds& sequence : sequences) {
    rows.push_back(at::tensor(std::vector<int64_t>(sequence.begin(), sequence.end()), at::kLong));
    batch.rows.push_back(static_cast<int64_t>(batch.rows.size()));
  }
  batch.ids = at::stack(rows);  // All of one length.
  batch.lengths = at::full({batch.ids.size(0)}, batch.ids.size(1), at::kLong);
  const nlohmann::json goldens = Golden("prune_stories260k.json");
  ASSERT_GE(goldens["cases"].size(), 11u);
  for (const nlohmann::json& golden : goldens["cases"]) {
    nlohmann::json labels = golden;
    labels.erase("kept");
    SCOPED_TRACE(labels.dump());
    const ImportanceOptions importance{
        .method = kMethods.at(golden["importance"]),
        .reduction = kReductions.at(golden.value("reduction", "sum")),
        .fold = golden.value("fold", "readers") == std::string("llm_pruner") ? HeadFold::kLlmPruner
                                                                             : HeadFold::kReaders};
    PruningOptions pruning{.ratio = golden["ratio"],
                           .alignment = golden.value("alignment", 1),
                           .selection = kSelections.at(golden.value("selection", "local")),
                           .steps = golden.value("steps", 1)};
    if (golden.contains("first")) {
      pruning.layout = PruningLayout::kPerLayer;
      pruning.first_block = golden["first"];
      pruning.last_block = golden["last"];
    }
    const auto outcome = PruneInSteps(*stories, {batch}, importance, pruning);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    for (size_t block = 0; block < 5; ++block) {
      const nlohmann::json& kept = golden["kept"][block];
      EXPECT_EQ(outcome->plan.blocks[block].kv_heads, kept["heads"].get<std::vector<int64_t>>());
      EXPECT_EQ(outcome->plan.blocks[block].mlp_channels,
                kept["channels"].get<std::vector<int64_t>>());
    }
  }
}

TEST(IterativePruningTest, OneStepIsPlainPruning) {
  MemoryWeightSource model = RandomModel();
  const std::vector<TokenBatch> batches = {RandomBatch({9, 7}, 40, 2)};
  const PruningOptions options{.ratio = 0.5, .alignment = 4};
  const auto outcome = PruneInSteps(model, batches, {}, options);
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  const auto importance = ScoreGroups(model, batches, {});
  const auto plan = MakePruningPlan(model.config(), importance, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (size_t block = 0; block < 3; ++block) {
    EXPECT_EQ(outcome->plan.blocks[block].kv_heads, plan->blocks[block].kv_heads);
    EXPECT_EQ(outcome->plan.blocks[block].mlp_channels, plan->blocks[block].mlp_channels);
    EXPECT_TRUE(at::equal(outcome->importance[block].mlp_channels, importance[block].mlp_channels));
  }
}

TEST(IterativePruningTest, ProgressGrowsToOne) {
  MemoryWeightSource model = RandomModel();
  double last = 0;
  const auto outcome =
      PruneInSteps(model, {RandomBatch({9}, 40, 2)}, {}, {.ratio = 0.5, .alignment = 4, .steps = 3},
                   [&](double fraction) {
                     EXPECT_GE(fraction, last);
                     last = fraction;
                   });
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_DOUBLE_EQ(last, 1);
  EXPECT_EQ(outcome->plan.blocks[0].mlp_channels.size(), 12u);
}

// Of shapes alone: the scores do not matter for how many groups go.
int64_t PrunedParameterCount(const ModelConfig& config, double ratio, int64_t first, int64_t last) {
  std::vector<BlockImportance> importance;
  for (const BlockShape& shape : config.blocks) {
    importance.push_back({at::zeros({shape.num_kv_heads}, at::kDouble),
                          at::zeros({shape.intermediate_size}, at::kDouble)});
  }
  const auto plan = MakePruningPlan(config, importance,
                                    {.ratio = ratio,
                                     .layout = PruningLayout::kPerLayer,
                                     .alignment = 1,
                                     .first_block = first,
                                     .last_block = last});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return ParameterCount(PrunedConfig(config, *plan));
}

// The published model sizes of LLM-Pruner (its paper, and its issue 34).
TEST(PublishedSizesTest, Llama7b) {
  ModelConfig config;
  config.vocab_size = 32000;
  config.hidden_size = 4096;
  config.head_dim = 128;
  config.blocks.assign(32, {.num_heads = 32, .num_kv_heads = 32, .intermediate_size = 11008});
  ASSERT_EQ(ParameterCount(config), 6738415616);
  EXPECT_EQ(PrunedParameterCount(config, 0.25, 4, 30), 5422977024);
  EXPECT_EQ(PrunedParameterCount(config, 0.6, 3, 31), 3350188032);
  // 6714.88 channels are 6714.
  EXPECT_EQ(PrunedParameterCount(config, 0.39, 4, 30), 4712222720);
}

TEST(PublishedSizesTest, Llama3With8b) {
  ModelConfig config;
  config.vocab_size = 128256;
  config.hidden_size = 4096;
  config.head_dim = 128;
  config.blocks.assign(32, {.num_heads = 32, .num_kv_heads = 8, .intermediate_size = 14336});
  ASSERT_EQ(ParameterCount(config), 8030261248);
  EXPECT_EQ(PrunedParameterCount(config, 0.25, 4, 30), 6612586496);
}

}  // namespace
}  // namespace qpruner::engine
