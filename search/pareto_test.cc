#include "search/pareto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "search/random_stream.h"

namespace qpruner::search {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Points on a small integer grid, so that ties happen.
std::vector<Point> RandomPoints(int seed, int count) {
  RandomStream random(7, seed);
  std::vector<Point> points;
  for (int i = 0; i < count; ++i) {
    points.push_back({double(random.Below(12)), double(random.Below(12))});
  }
  return points;
}

bool Dominates(const Point& a, const Point& b) {
  return a.bytes <= b.bytes && a.quality <= b.quality &&
         (a.bytes < b.bytes || a.quality < b.quality);
}

TEST(ParetoTest, NonDominatedIsWhatTheDefinitionSays) {
  for (int seed = 0; seed < 200; ++seed) {
    const std::vector<Point> points = RandomPoints(seed, 1 + seed % 20);
    const std::vector<size_t> front = NonDominated(points);
    for (size_t i = 0; i < points.size(); ++i) {
      bool dominated = false;
      for (size_t j = 0; j < points.size(); ++j) {
        dominated |= Dominates(points[j], points[i]);
        // Of equal points the first stays.
        dominated |=
            j < i && points[j].bytes == points[i].bytes && points[j].quality == points[i].quality;
      }
      EXPECT_EQ(std::find(front.begin(), front.end(), i) == front.end(), dominated);
    }
    for (size_t i = 1; i < front.size(); ++i) {
      EXPECT_LT(points[front[i - 1]].bytes, points[front[i]].bytes);
    }
  }
}

TEST(ParetoTest, HypervolumeEqualsCountedUnitSquares) {
  for (int seed = 0; seed < 200; ++seed) {
    const std::vector<Point> points = RandomPoints(seed, seed % 20);
    const Point reference{10, 9};
    int squares = 0;
    for (int x = 0; x < 10; ++x) {
      for (int y = 0; y < 9; ++y) {
        squares += std::any_of(points.begin(), points.end(),
                               [&](const Point& p) { return p.bytes <= x && p.quality <= y; });
      }
    }
    EXPECT_EQ(Hypervolume(points, reference), squares) << "seed " << seed;
  }
}

TEST(ParetoTest, FrontOfTrialsSkipsWhatWasNotMeasured) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Trial> trials = {
      {.index = 1, .state = TrialState::MEASURED, .quality = 1.0, .bytes = 30},
      {.index = 2, .state = TrialState::PENDING, .quality = 0.0, .bytes = 10},
      {.index = 3, .state = TrialState::MEASURED, .quality = nan, .bytes = 5},
      {.index = 4, .state = TrialState::INFEASIBLE, .quality = 0.0, .bytes = 5},
      {.index = 5, .state = TrialState::MEASURED, .quality = 2.0, .bytes = 20},
      {.index = 6, .state = TrialState::MEASURED, .quality = 2.0, .bytes = 25},
  };
  EXPECT_THAT(ParetoFront(trials), ElementsAre(4, 0));
  EXPECT_THAT(ParetoFront({}), IsEmpty());
}

}  // namespace
}  // namespace qpruner::search
