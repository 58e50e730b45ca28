#include "search/acquisition.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "search/random_stream.h"

namespace qpruner::search {
namespace {

double Normal(RandomStream& random) {
  const double u = 1 - random.Uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * random.Uniform());
}

// The definition: the mean gain in hypervolume when the outcome is drawn.
TEST(AcquisitionTest, AgreesWithMonteCarlo) {
  RandomStream random(11, 0);
  for (int problem = 0; problem < 20; ++problem) {
    std::vector<Point> points;
    for (int i = 0; i < problem; ++i) points.push_back({random.Uniform(), random.Uniform()});
    const Point reference{0.9, 0.9};
    const FrontImprovement improvement(points, reference);
    const double bytes = random.Uniform(), mean = random.Uniform();
    const double stddev = 0.02 + 0.3 * random.Uniform();
    const double before = Hypervolume(points, reference);
    constexpr int kDraws = 20000;
    double sum = 0, sum_of_squares = 0;
    points.push_back({});
    for (int i = 0; i < kDraws; ++i) {
      points.back() = {bytes, mean + stddev * Normal(random)};
      const double gain = Hypervolume(points, reference) - before;
      sum += gain;
      sum_of_squares += gain * gain;
    }
    const double estimate = sum / kDraws;
    const double error = std::sqrt((sum_of_squares / kDraws - estimate * estimate) / kDraws);
    // Five standard errors; the floor is for gains too rare for 20000 draws to show.
    EXPECT_NEAR(improvement.Expected(bytes, mean, stddev), estimate, 5 * error + 1e-5)
        << "problem " << problem;
  }
}

TEST(AcquisitionTest, WithoutUncertaintyItIsTheGain) {
  const std::vector<Point> points = {{2, 5}, {4, 3}, {8, 1}};
  const Point reference{10, 6};
  const FrontImprovement improvement(points, reference);
  const auto gain = [&](Point p) {
    std::vector<Point> with = points;
    with.push_back(p);
    return Hypervolume(with, reference) - Hypervolume(points, reference);
  };
  for (double bytes = 0; bytes <= 11; bytes += 0.5) {
    for (double quality = 0; quality <= 7; quality += 0.5) {
      EXPECT_NEAR(improvement.Expected(bytes, quality, 0), gain({bytes, quality}), 1e-12);
    }
  }
}

TEST(AcquisitionTest, ExpectedImprovementInItsLimits) {
  EXPECT_DOUBLE_EQ(ExpectedImprovement(3, 1, 0), 2);
  EXPECT_DOUBLE_EQ(ExpectedImprovement(1, 3, 0), 0);
  // At z = 0: stddev / sqrt(2 pi).
  EXPECT_NEAR(ExpectedImprovement(1, 1, 2), 2 / std::sqrt(2 * std::numbers::pi), 1e-15);
  EXPECT_NEAR(ExpectedImprovement(100, 1, 2), 99, 1e-12);
  EXPECT_GE(ExpectedImprovement(1, 16, 2), 0);
  EXPECT_EQ(ExpectedImprovement(1, 100, 2), 0);
}

}  // namespace
}  // namespace qpruner::search
