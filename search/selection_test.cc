#include "search/selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace qpruner::search {
namespace {

using ::testing::HasSubstr;

Trial Measured(int index, int64_t bytes, double quality) {
  return {.index = index, .state = TrialState::MEASURED, .quality = quality, .bytes = bytes};
}

TEST(SelectionTest, TakesTheBestQualityWithinTheBudget) {
  const std::vector<Trial> trials = {Measured(1, 100, 0.5), Measured(2, 200, 0.1),
                                     Measured(3, 120, 0.4), Measured(4, 121, 0.3)};
  EXPECT_EQ(*ChooseTrial(trials, 120), 2u);
  EXPECT_EQ(*ChooseTrial(trials, 121), 3u);
  EXPECT_EQ(*ChooseTrial(trials, std::nullopt), 1u);
}

TEST(SelectionTest, TiesGoToFewerBytesThenToTheEarlierTrial) {
  const std::vector<Trial> trials = {Measured(1, 110, 0.5), Measured(2, 100, 0.5),
                                     Measured(3, 100, 0.5)};
  EXPECT_EQ(*ChooseTrial(trials, 120), 1u);
}

TEST(SelectionTest, SaysWhyNothingCanBeChosen) {
  EXPECT_EQ(ChooseTrial({}, 10).status().code(), absl::StatusCode::kNotFound);
  const std::vector<Trial> trials = {
      Measured(1, 100, 0.5),
      {.index = 2, .state = TrialState::PENDING, .quality = 0, .bytes = 5},
      {.index = 3, .state = TrialState::INFEASIBLE, .quality = 0, .bytes = 5}};
  const absl::Status status = ChooseTrial(trials, 99).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("99 bytes: the smallest has 100"));
}

}  // namespace
}  // namespace qpruner::search
