// The plans that need no trials: sensitivity, mutual information, random; against exhaustive
// search.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "search/feasible_sampler.h"
#include "search/mutual_information_plan.h"
#include "search/sensitivity_plan.h"
#include "search/synthetic_model.h"

namespace qpruner::search {
namespace {

using ::testing::ElementsAre;

void ForEachAssignment(const SearchSpace& space, const std::function<void(const Assignment&)>& f) {
  Assignment assignment(space.groups.size(), 0);
  while (true) {
    f(assignment);
    size_t g = 0;
    while (g < assignment.size() &&
           ++assignment[g] == static_cast<int>(space.groups[g].choices.size())) {
      assignment[g++] = 0;
    }
    if (g == assignment.size()) return;
  }
}

double BestSum(const SearchSpace& space, int64_t budget) {
  double best = std::numeric_limits<double>::infinity();
  ForEachAssignment(space, [&](const Assignment& a) {
    if (Feasible(space, a, budget)) best = std::min(best, TotalSensitivity(space, a));
  });
  return best;
}

TEST(SensitivityPlannerTest, IsOptimalForEveryBudgetOfSmallSpaces) {
  for (int seed = 0; seed < 5; ++seed) {
    const SyntheticModel model(6, {2, 4, 8}, 0, seed);
    const SearchSpace& space = model.space();
    const int64_t smallest = SmallestBytes(space), largest = LargestBytes(space);
    const SensitivityPlanner planner(space, largest);
    for (int i = 0; i <= 12; ++i) {
      const int64_t budget = smallest + (largest - smallest) * i / 12;
      const Assignment plan = planner.Plan(budget);
      EXPECT_LE(TotalBytes(space, plan), budget);
      // The DP adds in another order than the exhaustive search: equal up to rounding.
      EXPECT_NEAR(TotalSensitivity(space, plan), BestSum(space, budget), 1e-12)
          << "seed " << seed << ", budget " << budget;
    }
  }
}

TEST(SensitivityPlannerTest, ARoundedGridStaysWithinTheBudgetAndCloseToTheOptimum) {
  SearchSpace space = SyntheticModel(6, {2, 4, 8}, 0, 3).space();
  // Sizes of a large model without a common divisor: more than a million cells.
  for (size_t g = 0; g < space.groups.size(); ++g) {
    for (Choice& choice : space.groups[g].choices) choice.bytes = choice.bytes * 7919 + 13 * g + 1;
  }
  space.groups[2].choices[1].bytes += 1;
  const int64_t smallest = SmallestBytes(space), largest = LargestBytes(space);
  ASSERT_FALSE(BudgetGrid(space, largest, 16384).exact());
  const SensitivityPlanner planner(space, largest);
  for (int i = 0; i <= 24; ++i) {
    const int64_t budget = smallest + (largest - smallest) * i / 24;
    const double sum = TotalSensitivity(space, planner.Plan(budget));
    EXPECT_LE(TotalBytes(space, planner.Plan(budget)), budget);
    EXPECT_GE(sum, BestSum(space, budget) - 1e-12);
    // Six groups waste at most six units of 1/16384 of the range.
    EXPECT_LE(sum, BestSum(space, budget - 6 * ((largest - smallest) / 16384 + 1)) + 1e-12);
  }
}

TEST(SensitivityPlannerTest, BudgetsOutsideTheRangeAreClamped) {
  const SyntheticModel model(4, {4, 8}, 0, 1);
  const SearchSpace& space = model.space();
  const SensitivityPlanner planner(space, LargestBytes(space));
  EXPECT_THAT(planner.Plan(0), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(planner.Plan(LargestBytes(space) * 2), ElementsAre(1, 1, 1, 1));
  const SensitivityPlanner smallest_only(space, SmallestBytes(space));
  EXPECT_THAT(smallest_only.Plan(LargestBytes(space)), ElementsAre(0, 0, 0, 0));
}

// Worked by hand from the rule of METHODS: gain = I log2(next / cur) / added bits.
TEST(MutualInformationPlanTest, RaisesByGainPerAddedBit) {
  SearchSpace space;
  for (int i = 0; i < 3; ++i) {
    space.groups.push_back(
        {.name = "g",
         .parameter_count = 8,
         .choices = {{.bits = 2, .bytes = 2}, {.bits = 4, .bytes = 4}, {.bits = 8, .bytes = 8}}});
  }
  space.groups[0].mutual_information = 1.0;  // Gains: 1/16, then 1/32.
  space.groups[1].mutual_information = 3.0;  // Gains: 3/16, then 3/32.
  space.groups[2].mutual_information = -1;   // Never.
  EXPECT_THAT(MutualInformationPlan(space, 6), ElementsAre(0, 0, 0));
  EXPECT_THAT(MutualInformationPlan(space, 8), ElementsAre(0, 1, 0));
  // The step of gain 3/32 does not fit; the one of 1/16 does.
  EXPECT_THAT(MutualInformationPlan(space, 10), ElementsAre(1, 1, 0));
  EXPECT_THAT(MutualInformationPlan(space, 12), ElementsAre(0, 2, 0));
  EXPECT_THAT(MutualInformationPlan(space, 1000), ElementsAre(2, 2, 0));
}

TEST(FeasibleSamplerTest, DrawsEveryFeasibleAssignmentEquallyOften) {
  const SyntheticModel model(4, {2, 4, 8}, 0, 5);
  const SearchSpace& space = model.space();
  const int64_t budget = SmallestBytes(space) + (LargestBytes(space) - SmallestBytes(space)) / 3;
  std::map<Assignment, int> counts;
  ForEachAssignment(space, [&](const Assignment& a) {
    if (Feasible(space, a, budget)) counts[a] = 0;
  });
  ASSERT_GT(counts.size(), 10u);
  ASSERT_LT(counts.size(), 81u);
  const FeasibleSampler sampler(space, budget);
  RandomStream random(1, 1);
  const int draws = 200 * static_cast<int>(counts.size());
  for (int i = 0; i < draws; ++i) {
    const Assignment drawn = sampler.Draw(random);
    ASSERT_TRUE(Feasible(space, drawn, budget));
    ++counts[drawn];
  }
  // Binomial with mean 200 and standard deviation 14: five of them.
  for (const auto& [assignment, count] : counts) EXPECT_NEAR(count, 200, 70);
}

TEST(FeasibleSamplerTest, WorksWhenOnlyTheSmallestFits) {
  const SyntheticModel model(40, {4, 8, 16}, 0, 5);
  const FeasibleSampler sampler(model.space(), SmallestBytes(model.space()));
  RandomStream random(1, 1);
  EXPECT_EQ(sampler.Draw(random), Assignment(40, 0));
}

}  // namespace
}  // namespace qpruner::search
