#include "worker/engine/model/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

// LLaMA-7B's shape.
ModelConfig SevenBillion() {
  ModelConfig config;
  config.vocab_size = 32000;
  config.hidden_size = 4096;
  config.head_dim = 128;
  config.blocks.assign(32, {.num_heads = 32, .num_kv_heads = 32, .intermediate_size = 11008});
  return config;
}

constexpr int64_t kGib = int64_t{1} << 30;

TEST(MemoryPlanTest, CountsTheModel) {
  const MemoryCosts costs = EstimateMemory(SevenBillion(), {.element_bytes = 2});
  EXPECT_EQ(costs.model_bytes, 2 * int64_t{6738415616});
  EXPECT_EQ(costs.block_bytes, 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096));
}

TEST(MemoryPlanTest, CountsTheMostDemandingWalk) {
  const auto fixed = [](const MemoryPlanOptions& options) {
    return EstimateMemory(SevenBillion(), options).fixed_bytes;
  };
  const int64_t block = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096;
  const int64_t usual = fixed({});
  // A copy in float32 for each format; never less than second-order scoring's two.
  EXPECT_EQ(fixed({.formats = 1}), usual);
  EXPECT_EQ(fixed({.formats = 7}) - usual, 5 * 4 * block);
  // GPTQ: float64 matrices of 11008 x 11008 are more than the two copies.
  const int64_t moments = 4 * (3 * int64_t{4096} * 4096 + int64_t{11008} * 11008);
  EXPECT_EQ(fixed({.input_moments = true}) - usual,
            moments + 24 * int64_t{11008} * 11008 + 2 * (block - 2 * 4096) - 2 * 4 * block);
  // On a GPU the factorization is not the device's, logits take more, and two heads are copied.
  EXPECT_EQ(fixed({.on_host = false, .input_moments = true}), fixed({.on_host = false}));
  EXPECT_EQ(fixed({.on_host = false}) - usual, 5 * (int64_t{64} << 20));
  const auto expected = [](int64_t limit, int64_t head_bytes) {
    return PlanMemory(SevenBillion(),
                      {.limit_bytes = limit, .element_bytes = 2, .head_bytes = head_bytes})
        ->expected_bytes;
  };
  EXPECT_EQ(expected(24 * kGib, 1000) - expected(24 * kGib, 0), 1000);
  EXPECT_EQ(expected(10 * kGib, 1000) - expected(10 * kGib, 0), 2000);
}

TEST(MemoryPlanTest, StaysWhereItFitsAndStreamsWhereItDoesNot) {
  const ModelConfig config = SevenBillion();
  const auto plan = [&](int64_t limit) {
    return *PlanMemory(config, {.limit_bytes = limit, .element_bytes = 2, .longest_sequence = 128});
  };
  EXPECT_TRUE(plan(24 * kGib).resident());
  EXPECT_TRUE(plan(24 * kGib).prefetch);
  EXPECT_THAT(plan(24 * kGib).ToString(), HasSubstr("stay in memory"));
  const MemoryPlan ahead = plan(10 * kGib);
  EXPECT_FALSE(ahead.resident());
  EXPECT_TRUE(ahead.prefetch);
  EXPECT_EQ(ahead.batch_tokens, 4096);
  const MemoryPlan small = plan(3 * kGib);
  EXPECT_FALSE(small.resident());
  EXPECT_LT(small.batch_tokens, 4096);
  for (const int64_t limit : {24 * kGib, 10 * kGib, 4 * kGib, 3 * kGib}) {
    EXPECT_LE(plan(limit).expected_bytes, limit);
  }
}

TEST(MemoryPlanTest, RefusesALimitThatNothingFitsInAndNamesOneThatDoes) {
  const ModelConfig config = SevenBillion();
  const auto refused = PlanMemory(config, {.limit_bytes = kGib, .longest_sequence = 512});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("limits.device_memory_bytes"));
}

TEST(MemoryPlanTest, LongSequencesMakeLargeBatches) {
  const auto plan =
      PlanMemory(SevenBillion(), {.limit_bytes = 100 * kGib, .longest_sequence = 8192});
  EXPECT_EQ(plan->batch_tokens, 8192);
}

TEST(MemoryPlanTest, TheMachineHasAMemory) { EXPECT_GT(DefaultHostMemoryLimit(), 0); }

}  // namespace
}  // namespace qpruner::engine
