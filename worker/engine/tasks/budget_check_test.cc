#include "worker/engine/tasks/budget_check.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/status_codec.h"
#include "worker/engine/quantize/assignment.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

TEST(BudgetCheckTest, RefusesWhatTheSmallestAssignmentExceeds) {
  const auto config = ParseModelConfig(R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
      "num_attention_heads": 4, "max_position_embeddings": 256})");
  ASSERT_TRUE(config.ok()) << config.status();
  const std::vector<Format> formats = {Format::NormalFloat(4), Format::Bfloat16()};
  const ModelBytes smallest =
      CountBytes(*config, UniformAssignment(*config, Format::NormalFloat(4)));
  v1::Search search;
  EXPECT_TRUE(CheckBudget(search, *config, formats).ok()) << "no budget";
  search.set_max_bytes(smallest.total());
  EXPECT_TRUE(CheckBudget(search, *config, formats).ok());
  search.set_max_bytes(smallest.total() - 1);
  const absl::Status refused = CheckBudget(search, *config, formats);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(refused), "BUDGET_TOO_SMALL");
  EXPECT_THAT(std::string(refused.message()), HasSubstr("search.max_bytes"));
  search.set_max_average_bits(smallest.average_bits());
  EXPECT_TRUE(CheckBudget(search, *config, formats).ok());
  search.set_max_average_bits(smallest.average_bits() - 0.01);
  EXPECT_FALSE(CheckBudget(search, *config, formats).ok());
}

}  // namespace
}  // namespace qpruner::engine
