// The numerics against GPyTorch and BoTorch: tests/golden/search.json, written by
// tests/compat/search_golden.py.
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "search/acquisition.h"
#include "search/gaussian_process.h"

namespace qpruner::search {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

nlohmann::json ReadGolden() {
  std::ifstream file("tests/golden/search.json");
  EXPECT_TRUE(file.is_open()) << "tests run in the source folder";
  return nlohmann::json::parse(file);
}

VectorXd Vector(const nlohmann::json& json) {
  const auto values = json.get<std::vector<double>>();
  return Eigen::Map<const VectorXd>(values.data(), static_cast<Eigen::Index>(values.size()));
}

// A row of JSON a column of the matrix.
MatrixXd Columns(const nlohmann::json& json) {
  MatrixXd result(json[0].size(), json.size());
  for (size_t i = 0; i < json.size(); ++i) result.col(i) = Vector(json[i]);
  return result;
}

MatrixXd SquaredDistances(const MatrixXd& a, const MatrixXd& b) {
  MatrixXd result(a.cols(), b.cols());
  for (Eigen::Index j = 0; j < b.cols(); ++j) {
    result.col(j) = (a.colwise() - b.col(j)).colwise().squaredNorm();
  }
  return result;
}

TEST(SearchGoldenTest, GaussianProcessAgreesWithGpytorch) {
  const nlohmann::json golden = ReadGolden()["gaussian_process"];
  const LinearMeanPrior prior{.intercept_mean = golden["prior"]["intercept_mean"],
                              .intercept_stddev = golden["prior"]["intercept_stddev"],
                              .slope_mean = golden["prior"]["slope_mean"],
                              .slope_stddev = golden["prior"]["slope_stddev"]};
  const nlohmann::json& h = golden["hyperparameters"];
  const Hyperparameters hyperparameters{.signal_stddev = h["signal_stddev"],
                                        .length_scale = h["length_scale"],
                                        .noise_stddev = h["noise_stddev"]};
  const MatrixXd x = Columns(golden["x"]);
  const Observations observations{.squared_distances = SquaredDistances(x, x),
                                  .basis = Vector(golden["basis"]),
                                  .values = Vector(golden["y"])};
  // Both compute in double precision; the condition number is about 1e5.
  EXPECT_NEAR(LogMarginalLikelihood(observations, prior, hyperparameters),
              golden["log_marginal_likelihood"].get<double>(), 1e-9);
  const auto prediction =
      GaussianProcess(observations, prior, hyperparameters)
          .Predict(SquaredDistances(x, Columns(golden["query"])), Vector(golden["query_basis"]));
  EXPECT_LT((prediction.mean - Vector(golden["mean"])).cwiseAbs().maxCoeff(), 1e-10);
  EXPECT_LT((prediction.variance - Vector(golden["variance"])).cwiseAbs().maxCoeff(), 1e-10);
}

TEST(SearchGoldenTest, ExpectedHypervolumeImprovementAgreesWithBotorch) {
  const nlohmann::json golden = ReadGolden()["hypervolume_improvement"];
  ASSERT_EQ(golden.size(), 20u);
  for (const nlohmann::json& c : golden) {
    std::vector<Point> points;
    for (const nlohmann::json& point : c["points"]) points.push_back({point[0], point[1]});
    const FrontImprovement improvement(points, {c["reference"][0], c["reference"][1]});
    // Double precision; the golden's standard deviation of bytes, 1e-8, shows in the square.
    EXPECT_NEAR(improvement.Expected(c["bytes"], c["mean"], c["stddev"]),
                c["expected"].get<double>(), 1e-10);
  }
}

}  // namespace
}  // namespace qpruner::search
