#include "worker/engine/prune/width_search.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/prune/pruned_source.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(CheapestChoicesTest, TakesTheLeastCostThatSavesEnough) {
  const std::vector<std::vector<int64_t>> savings = {{0, 10, 20}, {0, 10, 20}};
  const std::vector<std::vector<double>> costs = {{0, 1, 5}, {0, 2, 3.5}};
  EXPECT_THAT(CheapestChoices(savings, costs, 0), ElementsAre(0, 0));
  EXPECT_THAT(CheapestChoices(savings, costs, 10), ElementsAre(1, 0));
  EXPECT_THAT(CheapestChoices(savings, costs, 20), ElementsAre(1, 1));
  EXPECT_THAT(CheapestChoices(savings, costs, 30), ElementsAre(1, 2));
  EXPECT_THAT(CheapestChoices(savings, costs, 41), IsEmpty());
}

// Against trying everything.
TEST(CheapestChoicesTest, EqualsTryingEverything) {
  std::mt19937_64 generator(3);
  const auto draw = [&](int64_t below) { return static_cast<int64_t>(generator() % below); };
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<int64_t>> savings(5);
    std::vector<std::vector<double>> costs(5);
    for (size_t unit = 0; unit < 5; ++unit) {
      for (int choice = 0; choice < 4; ++choice) {
        savings[unit].push_back(choice == 0 ? 0 : draw(100));
        costs[unit].push_back(choice == 0 ? 0 : static_cast<double>(draw(1000)));
      }
    }
    const int64_t needed = 100 + draw(150);
    double best = std::numeric_limits<double>::infinity();
    for (int code = 0; code < 4 * 4 * 4 * 4 * 4; ++code) {
      int64_t saved = 0;
      double cost = 0;
      for (int unit = 0, rest = code; unit < 5; ++unit, rest /= 4) {
        saved += savings[unit][rest % 4];
        cost += costs[unit][rest % 4];
      }
      if (saved >= needed) best = std::min(best, cost);
    }
    const std::vector<size_t> chosen = CheapestChoices(savings, costs, needed);
    if (best == std::numeric_limits<double>::infinity()) {
      EXPECT_THAT(chosen, IsEmpty());
      continue;
    }
    ASSERT_EQ(chosen.size(), 5u);
    int64_t saved = 0;
    double cost = 0;
    for (size_t unit = 0; unit < 5; ++unit) {
      saved += savings[unit][chosen[unit]];
      cost += costs[unit][chosen[unit]];
    }
    EXPECT_GE(saved, needed);
    EXPECT_EQ(cost, best);
  }
}

class WidthSearchTest : public ::testing::Test {
 protected:
  MemoryWeightSource model_ = RandomModel({.blocks = 4, .intermediate = 64});
  const std::vector<TokenBatch> batches_ = {RandomBatch({9, 12, 5}, 40, 2)};
  const std::vector<BlockImportance> importance_ = ScoreGroups(model_, batches_, {});

  // What the outcome says of its plan, measured again.
  void ExpectHonest(const WidthSearchOutcome& outcome, int64_t allowed) {
    const WidthCandidate& best = outcome.candidates[outcome.best];
    for (const WidthCandidate& candidate : outcome.candidates) {
      EXPECT_LE(candidate.parameter_count, allowed) << candidate.origin;
      EXPECT_GE(candidate.divergence, best.divergence) << candidate.origin;
      for (const KeptCounts& counts : candidate.counts) {
        EXPECT_TRUE(counts.mlp_channels % 8 == 0) << candidate.origin;
        EXPECT_GE(counts.kv_heads, 1);
      }
    }
    PrunedSource pruned(model_, outcome.plan);
    const ReferenceStates original{ForwardHidden(model_, BatchIds(batches_)), model_.Head()};
    EXPECT_DOUBLE_EQ(EvaluateModel(pruned, batches_, &original).mean_kl(), best.divergence);
  }
};

TEST_F(WidthSearchTest, OneShapeForAllBlocks) {
  double last = 0;
  const auto outcome =
      SearchWidths(model_, batches_, importance_, 0.3, {.alignment = 8}, [&](double fraction) {
        EXPECT_GE(fraction, last);
        last = fraction;
      });
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_DOUBLE_EQ(last, 1);
  EXPECT_EQ(outcome->candidates[0].origin, "one ratio");
  EXPECT_GE(outcome->candidates.size(), 3u);
  ExpectHonest(*outcome, AllowedParameters(model_.config(), 0.3));
  EXPECT_TRUE(PrunedConfig(model_.config(), outcome->plan).uniform());
}

TEST_F(WidthSearchTest, BlocksThatDifferComeToOneShape) {
  PruningPlan mixed = FullPlan(model_.config());
  mixed.blocks[1].mlp_channels.resize(40);
  mixed.blocks[2].kv_heads.resize(2);
  PrunedSource pruned(model_, mixed);
  const auto importance = ScoreGroups(pruned, batches_, {});
  const auto outcome = SearchWidths(pruned, batches_, importance, 0.2, {.alignment = 8});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  for (const WidthCandidate& candidate : outcome->candidates) {
    for (const KeptCounts& counts : candidate.counts) {
      EXPECT_EQ(counts, candidate.counts.front()) << candidate.origin;
    }
  }
  EXPECT_TRUE(PrunedConfig(pruned.config(), outcome->plan).uniform());
}

TEST_F(WidthSearchTest, ShapesOfTheirOwn) {
  const PruningOptions options{.layout = PruningLayout::kPerLayer, .alignment = 8};
  const auto outcome = SearchWidths(model_, batches_, importance_, 0.15, options);
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->candidates.back().origin, "searched per block");
  ExpectHonest(*outcome, AllowedParameters(model_.config(), 0.15));
  const ModelConfig pruned = PrunedConfig(model_.config(), outcome->plan);
  EXPECT_EQ(pruned.blocks[0], model_.config().blocks[0]);
  EXPECT_EQ(pruned.blocks[3], model_.config().blocks[3]);
}

TEST_F(WidthSearchTest, SaysWhatCannotBeRemoved) {
  const auto refused = SearchWidths(model_, batches_, importance_, 0.95, {.alignment = 8});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("pruning.parameter_ratio"));
  // The same, from shapes alone.
  EXPECT_EQ(CheckWidthSearch(model_.config(), 0.95, {.alignment = 8}), refused.status());
  EXPECT_TRUE(CheckWidthSearch(model_.config(), 0.3, {.alignment = 8}).ok());
  EXPECT_THAT(std::string(CheckWidthSearch(model_.config(), 0.3, {.alignment = 65}).message()),
              HasSubstr("pruning.alignment"));
}

}  // namespace
}  // namespace qpruner::engine
