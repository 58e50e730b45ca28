#include "search/space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "search/synthetic_model.h"

namespace qpruner::search {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

SearchSpace TwoGroups() {
  SearchSpace space;
  space.fixed_bytes = 100;
  space.groups.push_back(
      {.name = "attention",
       .parameter_count = 16,
       .choices = {{.bits = 4, .bytes = 9, .sensitivity = 0.5}, {.bits = 8, .bytes = 18}}});
  space.groups.push_back({.name = "mlp",
                          .parameter_count = 32,
                          .choices = {{.bits = 4, .bytes = 17, .sensitivity = 0.25},
                                      {.bits = 8, .bytes = 34, .sensitivity = 0.125},
                                      {.bits = 16, .bytes = 64}}});
  return space;
}

TEST(SpaceTest, CountsBytesBitsAndSensitivity) {
  const SearchSpace space = TwoGroups();
  ASSERT_TRUE(Validate(space).ok());
  EXPECT_EQ(TotalBytes(space, {1, 0}), 100 + 18 + 17);
  EXPECT_EQ(SmallestBytes(space), 126);
  EXPECT_EQ(LargestBytes(space), 182);
  EXPECT_DOUBLE_EQ(AverageBits(space, {0, 1}), 8.0 * (9 + 34) / 48);
  EXPECT_DOUBLE_EQ(TotalSensitivity(space, {0, 1}), 0.625);
  EXPECT_TRUE(Feasible(space, {0, 0}, 126));
  EXPECT_FALSE(Feasible(space, {0, 1}, 126));
}

TEST(SpaceTest, BudgetOfAverageBitsAgreesWithAverageBits) {
  const SearchSpace space = TwoGroups();
  const double bits = AverageBits(space, {1, 1});
  EXPECT_EQ(BudgetForAverageBits(space, bits + 1e-9), TotalBytes(space, {1, 1}));
  EXPECT_LT(BudgetForAverageBits(space, bits - 0.01), TotalBytes(space, {1, 1}));
}

TEST(SpaceTest, UniformAssignmentsAreTheWidthsThatAllGroupsOffer) {
  const std::vector<UniformAssignment> uniform = UniformAssignments(TwoGroups());
  ASSERT_EQ(uniform.size(), 2u);
  EXPECT_EQ(uniform[0].bits, 4);
  EXPECT_THAT(uniform[0].assignment, ElementsAre(0, 0));
  EXPECT_EQ(uniform[1].bits, 8);
  EXPECT_THAT(uniform[1].assignment, ElementsAre(1, 1));
}

TEST(SpaceTest, ErrorsNameTheGroupAndTheRule) {
  const auto message = [](auto change) {
    SearchSpace space = TwoGroups();
    change(space);
    const absl::Status status = Validate(space);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message([](SearchSpace& s) { s.groups.clear(); }), HasSubstr("no groups"));
  EXPECT_THAT(message([](SearchSpace& s) { s.fixed_bytes = -1; }), HasSubstr("fixed_bytes"));
  EXPECT_THAT(message([](SearchSpace& s) { s.base_quality = -1; }), HasSubstr("base_quality"));
  EXPECT_THAT(message([](SearchSpace& s) { s.groups[1].choices[2].bytes = 34; }),
              AllOf(HasSubstr("\"mlp\""), HasSubstr("must grow"), HasSubstr("16 bits")));
  EXPECT_THAT(message([](SearchSpace& s) { s.groups[1].choices[2].bits = 8; }),
              HasSubstr("must grow"));
  EXPECT_THAT(message([](SearchSpace& s) { s.groups[0].choices.clear(); }),
              AllOf(HasSubstr("\"attention\""), HasSubstr("has 0")));
  EXPECT_THAT(message([](SearchSpace& s) { s.groups[0].parameter_count = 0; }),
              HasSubstr("parameter_count"));
  EXPECT_THAT(message([](SearchSpace& s) { s.groups[0].choices[0].sensitivity = -0.1; }),
              HasSubstr("sensitivity at 4 bits"));
  EXPECT_THAT(message([](SearchSpace& s) {
                s.groups[0].choices[1].sensitivity = std::numeric_limits<double>::quiet_NaN();
              }),
              HasSubstr("sensitivity at 8 bits"));
  EXPECT_THAT(message([](SearchSpace& s) { s.groups[0].name.clear(); }), HasSubstr("name"));
}

TEST(SpaceTest, AssignmentsMustFitTheSpace) {
  const SearchSpace space = TwoGroups();
  EXPECT_TRUE(Validate(space, {1, 2}).ok());
  EXPECT_THAT(std::string(Validate(space, {1}).message()), HasSubstr("2 groups, has 1"));
  EXPECT_THAT(std::string(Validate(space, {2, 0}).message()), HasSubstr("\"attention\""));
  EXPECT_FALSE(Validate(space, {-1, 0}).ok());
}

TEST(SpaceTest, ABudgetThatCannotBeMetSaysTheMinimum) {
  const SearchSpace space = TwoGroups();
  EXPECT_TRUE(ValidateBudget(space, 126).ok());
  const absl::Status status = ValidateBudget(space, 125);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("needs 126 bytes"), HasSubstr("budget is 125")));
}

TEST(SpaceTest, TheSyntheticModelIsAValidSpace) {
  EXPECT_TRUE(Validate(SyntheticModel(20, {2, 3, 4, 8}, 0.5, 1).space()).ok());
}

}  // namespace
}  // namespace qpruner::search
