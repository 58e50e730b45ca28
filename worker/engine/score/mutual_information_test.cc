#include "worker/engine/score/mutual_information.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "worker/engine/gradient/random_model.h"

namespace qpruner::engine {
namespace {

TEST(HistogramMutualInformationTest, KnownValues) {
  std::vector<double> ramp, constant(64, 3), halves, sixteenths;
  for (int i = 0; i < 64; ++i) {
    ramp.push_back(i);
    halves.push_back(i < 32 ? -1 : 1);
    sixteenths.push_back(i / 4);
  }
  // 64 equally spaced values fill the 16 bins evenly: I(X; X) is the entropy ln 16.
  EXPECT_NEAR(HistogramMutualInformation(ramp, ramp), std::log(16), 1e-12);
  EXPECT_NEAR(HistogramMutualInformation(ramp, halves), std::log(2), 1e-12);
  EXPECT_NEAR(HistogramMutualInformation(sixteenths, halves), std::log(2), 1e-12);
  EXPECT_NEAR(HistogramMutualInformation(ramp, constant), 0, 1e-12);
  EXPECT_EQ(HistogramMutualInformation({}, {}), 0);
}

// numpy 2.4: x = [((i * i * 37) % 101) / 7 for i in range(40)], y = [((i * 53) % 97) ** 1.5 ...];
// h, _, _ = np.histogram2d(x, y, 16); the sum of the definition over h / 40.
TEST(HistogramMutualInformationTest, EqualsNumpy) {
  std::vector<double> x, y;
  for (int i = 0; i < 40; ++i) {
    x.push_back(((i * i * 37) % 101) / 7.0);
    y.push_back(std::pow((i * 53) % 97, 1.5));
  }
  EXPECT_NEAR(HistogramMutualInformation(x, y), 1.4178061102767385, 1e-12);
}

TEST(MutualInformationTest, TakesMeansAndLargestLogitsOfRealPositions) {
  MemoryWeightSource model = RandomModel();
  const TokenBatch padded = RandomBatch({9, 5, 7, 9, 3, 8}, 40, 4);
  const std::vector<LinearGroup> groups = MakeSearchGroups(3, SearchGranularity::kFusedGroup);
  const MutualInformationScores found = MeasureMutualInformation(model, {padded}, groups);
  EXPECT_EQ(found.sample_count, 6);

  // By hand, one sample at a time.
  std::vector<std::vector<double>> means(3 * kLinearKindCount);
  std::vector<double> largest;
  for (const TokenBatch& row : SplitRows(padded)) {
    size_t call = 0;
    const at::Tensor logits =
        Logits(model, row.ids,
               [&](LinearKind kind, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
                 at::Tensor y = PlainLinear(kind, x, w, b);
                 means[call++].push_back(y.mean().item<double>());
                 return y;
               });
    largest.push_back(static_cast<double>(logits.flatten().argmax().item<int64_t>()));
  }
  for (size_t group = 0; group < groups.size(); ++group) {
    double expected = 0;
    for (LinearKind kind : groups[group].linears) {
      const size_t i = groups[group].block * kLinearKindCount + static_cast<size_t>(kind);
      expected = std::max(expected, HistogramMutualInformation(means[i], largest));
    }
    EXPECT_NEAR(found.groups[group].nats, expected, 1e-9) << groups[group].name;
  }
  // With as many bins as samples nearly every pairing looks informative: what the control is for.
  EXPECT_GT(found.groups[0].control_nats, 0.5);
  const MutualInformationScores again = MeasureMutualInformation(model, {padded}, groups);
  EXPECT_EQ(again.groups[0].control_nats, found.groups[0].control_nats);
}

}  // namespace
}  // namespace qpruner::engine
