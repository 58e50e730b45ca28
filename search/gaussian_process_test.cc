#include "search/gaussian_process.h"

#include <gtest/gtest.h>

#include <Eigen/LU>
#include <cmath>
#include <numbers>

#include "search/random_stream.h"

namespace qpruner::search {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

struct Problem {
  MatrixXd x;  // A column a point.
  Observations observations;
  MatrixXd query;
  VectorXd query_basis;
  MatrixXd query_distances;
};

MatrixXd SquaredDistances(const MatrixXd& a, const MatrixXd& b) {
  MatrixXd result(a.cols(), b.cols());
  for (int i = 0; i < a.cols(); ++i) {
    for (int j = 0; j < b.cols(); ++j) result(i, j) = (a.col(i) - b.col(j)).squaredNorm();
  }
  return result;
}

Problem RandomProblem(int n, int m, int seed) {
  RandomStream random(seed, 0);
  const auto uniform = [&] { return random.Uniform(); };
  Problem p;
  p.x = MatrixXd::NullaryExpr(3, n, uniform);
  p.query = MatrixXd::NullaryExpr(3, m, uniform);
  p.observations.squared_distances = SquaredDistances(p.x, p.x);
  p.observations.basis = VectorXd::NullaryExpr(n, [&] { return 4 * uniform() - 5; });
  p.observations.values =
      0.3 + 0.8 * p.observations.basis.array() + (4 * p.x.row(0).transpose().array()).sin() * 0.3;
  p.query_basis = VectorXd::NullaryExpr(m, [&] { return 4 * uniform() - 5; });
  p.query_distances = SquaredDistances(p.x, p.query);
  return p;
}

// The textbook, entry by entry: y ~ N(mean, K), explicit inverse and determinant.
struct Reference {
  double mean, variance;
};
double ReferenceKernel(double r, double mi, double mj, const LinearMeanPrior& prior,
                       const Hyperparameters& h) {
  const double t = std::sqrt(5.0) * r / h.length_scale;
  return h.signal_stddev * h.signal_stddev * (1 + t + t * t / 3) * std::exp(-t) +
         prior.intercept_stddev * prior.intercept_stddev +
         prior.slope_stddev * prior.slope_stddev * mi * mj;
}
MatrixXd ReferenceCovariance(const Problem& p, const LinearMeanPrior& prior,
                             const Hyperparameters& h) {
  const int n = p.x.cols();
  MatrixXd k(n, n);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      k(i, j) = ReferenceKernel((p.x.col(i) - p.x.col(j)).norm(), p.observations.basis[i],
                                p.observations.basis[j], prior, h) +
                (i == j ? h.noise_stddev * h.noise_stddev : 0);
    }
  }
  return k;
}
Reference ReferencePredict(const Problem& p, int query, const LinearMeanPrior& prior,
                           const Hyperparameters& h) {
  const int n = p.x.cols();
  const MatrixXd inverse = ReferenceCovariance(p, prior, h).inverse();
  VectorXd k(n), residual(n);
  const double m = p.query_basis[query];
  for (int i = 0; i < n; ++i) {
    k[i] = ReferenceKernel((p.x.col(i) - p.query.col(query)).norm(), p.observations.basis[i], m,
                           prior, h);
    residual[i] = p.observations.values[i] - prior.intercept_mean -
                  prior.slope_mean * p.observations.basis[i];
  }
  return {prior.intercept_mean + prior.slope_mean * m + k.dot(inverse * residual),
          ReferenceKernel(0, m, m, prior, h) - k.dot(inverse * k)};
}

TEST(GaussianProcessTest, PosteriorAgreesWithTheDenseReference) {
  const LinearMeanPrior prior{.intercept_mean = 0.5, .slope_mean = 1.2, .slope_stddev = 0.7};
  const Hyperparameters h{.signal_stddev = 0.4, .length_scale = 0.6, .noise_stddev = 0.05};
  const Problem p = RandomProblem(25, 10, 1);
  const auto prediction =
      GaussianProcess(p.observations, prior, h).Predict(p.query_distances, p.query_basis);
  for (int q = 0; q < 10; ++q) {
    const Reference reference = ReferencePredict(p, q, prior, h);
    // Terms of size 100 (the intercept's variance) cancel, with condition number about 1e6:
    // 100 x 1e-16 x 1e6.
    EXPECT_NEAR(prediction.mean[q], reference.mean, 1e-8);
    EXPECT_NEAR(prediction.variance[q], reference.variance, 1e-8);
  }
}

TEST(GaussianProcessTest, MarginalLikelihoodAgreesWithTheDenseReference) {
  const LinearMeanPrior prior;
  const Hyperparameters h{.signal_stddev = 0.4, .length_scale = 0.6, .noise_stddev = 0.05};
  const Problem p = RandomProblem(12, 1, 2);
  const MatrixXd k = ReferenceCovariance(p, prior, h);
  const VectorXd residual = p.observations.values - p.observations.basis;
  const double expected = -0.5 * residual.dot(k.inverse() * residual) -
                          0.5 * std::log(k.determinant()) - 6 * std::log(2 * std::numbers::pi);
  EXPECT_NEAR(LogMarginalLikelihood(p.observations, prior, h), expected, 1e-8);
}

// With flat priors the posterior means of a and b are those of generalised least squares.
TEST(GaussianProcessTest, CoefficientsTendToGeneralisedLeastSquares) {
  const LinearMeanPrior flat{.intercept_stddev = 1e3, .slope_stddev = 1e3};
  const LinearMeanPrior none{.intercept_stddev = 0, .slope_stddev = 0};
  const Hyperparameters h{.signal_stddev = 0.4, .length_scale = 0.6, .noise_stddev = 0.1};
  const Problem p = RandomProblem(20, 1, 3);
  const MatrixXd inverse = ReferenceCovariance(p, none, h).inverse();
  MatrixXd basis(20, 2);
  basis << VectorXd::Ones(20), p.observations.basis;
  const VectorXd gls = (basis.transpose() * inverse * basis).inverse() *
                       (basis.transpose() * inverse * p.observations.values);
  const GaussianProcess model(p.observations, flat, h);
  // The priors' precision of 1e-6 is a millionth of the data's, and 1e6 times 1e-16 is rounding.
  EXPECT_NEAR(model.intercept(), gls[0], 1e-5);
  EXPECT_NEAR(model.slope(), gls[1], 1e-5);
}

TEST(GaussianProcessTest, WithoutDataThePredictionIsThePrior) {
  const LinearMeanPrior prior;
  const GaussianProcess model({}, prior, {});
  const VectorXd basis = VectorXd::Constant(1, -2.0);
  const auto prediction = model.Predict(MatrixXd(0, 1), basis);
  EXPECT_DOUBLE_EQ(prediction.mean[0], -2.0);
  EXPECT_DOUBLE_EQ(prediction.variance[0], 0.3 * 0.3 + 100 + 4);
  EXPECT_EQ(model.slope(), 1.0);
  EXPECT_EQ(FitHyperparameters({}, prior).length_scale, Hyperparameters().length_scale);
}

TEST(GaussianProcessTest, DuplicatedPointsAreNoProblem) {
  Problem p = RandomProblem(6, 2, 4);
  p.x.col(1) = p.x.col(0);
  p.observations.squared_distances = SquaredDistances(p.x, p.x);
  p.observations.basis[1] = p.observations.basis[0];
  p.observations.values[1] = p.observations.values[0];
  const GaussianProcess model(p.observations, {}, {.noise_stddev = 1e-3});
  const auto prediction =
      model.Predict(SquaredDistances(p.x, p.x.leftCols(1)), p.observations.basis.head(1));
  // Interpolates up to the noise.
  EXPECT_NEAR(prediction.mean[0], p.observations.values[0], 5e-3);
  EXPECT_LT(prediction.variance[0], 1e-5);
}

TEST(GaussianProcessTest, FittingFindsABetterLikelihoodAndStaysWithinBounds) {
  const Problem p = RandomProblem(40, 1, 5);
  const Hyperparameters fitted = FitHyperparameters(p.observations, {});
  EXPECT_GT(LogMarginalLikelihood(p.observations, {}, fitted),
            LogMarginalLikelihood(p.observations, {}, {}) + 1.0);
  // The data are noise-free and smooth.
  EXPECT_LT(fitted.noise_stddev, 0.02);
  EXPECT_GE(fitted.noise_stddev, 0.001);
  EXPECT_LE(fitted.length_scale, 5.0);
  const Hyperparameters again = FitHyperparameters(p.observations, {});
  EXPECT_EQ(fitted.length_scale, again.length_scale);
  EXPECT_EQ(fitted.signal_stddev, again.signal_stddev);
}

}  // namespace
}  // namespace qpruner::search
