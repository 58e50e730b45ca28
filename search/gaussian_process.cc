#include "search/gaussian_process.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace qpruner::search {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

double Square(double x) { return x * x; }

// Covariance of f between points at these squared distances, eq. 4.17.
MatrixXd MaternCovariance(const MatrixXd& squared_distances, const Hyperparameters& h) {
  // sqrt(5) r / l; distances that were updated incrementally may be a rounding error below zero.
  const Eigen::ArrayXXd t =
      (squared_distances.array().max(0.0) * (5.0 / Square(h.length_scale))).sqrt();
  return Square(h.signal_stddev) * (1.0 + t + t.square() / 3.0) * (-t).exp();
}

// Covariance of f + a + b m between points.
void AddMeanCovariance(const LinearMeanPrior& prior, const VectorXd& rows, const VectorXd& columns,
                       MatrixXd& covariance) {
  covariance.array() += Square(prior.intercept_stddev);
  covariance.noalias() += Square(prior.slope_stddev) * rows * columns.transpose();
}

VectorXd PriorMean(const LinearMeanPrior& prior, const VectorXd& basis) {
  return (prior.intercept_mean + prior.slope_mean * basis.array()).matrix();
}

// Lower Cholesky factor of the covariance of the observed values.
MatrixXd FactorisedCovariance(const Observations& o, const LinearMeanPrior& prior,
                              const Hyperparameters& h) {
  MatrixXd covariance = MaternCovariance(o.squared_distances, h);
  AddMeanCovariance(prior, o.basis, o.basis, covariance);
  // The smallest noise, 1e-6 in variance, is far above the rounding of the largest entries (the
  // intercept's 100 times 1e-16), so the first try succeeds unless m-values are extreme.
  double jitter = Square(h.noise_stddev);
  while (true) {
    MatrixXd attempt = covariance;
    attempt.diagonal().array() += jitter;
    Eigen::LLT<Eigen::Ref<MatrixXd>> factorisation(attempt);
    if (factorisation.info() == Eigen::Success || jitter > 1e6) return attempt;
    jitter *= 10;
  }
}

double LogPrior(const Hyperparameters& h) {
  const Hyperparameters centre;
  return -0.5 * (Square(std::log(h.signal_stddev / centre.signal_stddev) / 1.0) +
                 Square(std::log(h.length_scale / centre.length_scale) / 0.7) +
                 Square(std::log(h.noise_stddev / centre.noise_stddev) / 1.0));
}

}  // namespace

double LogMarginalLikelihood(const Observations& observations, const LinearMeanPrior& prior,
                             const Hyperparameters& hyperparameters) {
  const MatrixXd factor = FactorisedCovariance(observations, prior, hyperparameters);
  const VectorXd residual = factor.triangularView<Eigen::Lower>().solve(
      observations.values - PriorMean(prior, observations.basis));
  const double n = static_cast<double>(observations.values.size());
  return -0.5 * residual.squaredNorm() - factor.diagonal().array().log().sum() -
         0.5 * n * std::log(2 * std::numbers::pi);
}

Hyperparameters FitHyperparameters(const Observations& observations, const LinearMeanPrior& prior) {
  struct Parameter {
    double Hyperparameters::*field;
    double smallest, largest;
  };
  static constexpr std::array<Parameter, 3> kParameters = {{
      {&Hyperparameters::signal_stddev, 0.01, 3.0},
      {&Hyperparameters::length_scale, 0.05, 5.0},
      {&Hyperparameters::noise_stddev, 0.001, 0.5},
  }};
  constexpr int kMaxEvaluations = 64;

  Hyperparameters best;
  if (observations.values.size() == 0) return best;
  int evaluations = 0;
  const auto score = [&](const Hyperparameters& h) {
    ++evaluations;
    return LogMarginalLikelihood(observations, prior, h) + LogPrior(h);
  };
  double best_score = score(best);
  for (double factor = 3.0; factor > 1.1;) {
    bool improved = false;
    for (const Parameter& parameter : kParameters) {
      for (double step : {factor, 1 / factor}) {
        if (evaluations >= kMaxEvaluations) return best;
        Hyperparameters tried = best;
        tried.*parameter.field =
            std::clamp(best.*parameter.field * step, parameter.smallest, parameter.largest);
        if (tried.*parameter.field == best.*parameter.field) continue;
        const double tried_score = score(tried);
        if (tried_score > best_score) {
          best = tried;
          best_score = tried_score;
          improved = true;
          break;
        }
      }
    }
    if (!improved) factor = std::sqrt(factor);
  }
  return best;
}

GaussianProcess::GaussianProcess(const Observations& observations, const LinearMeanPrior& prior,
                                 const Hyperparameters& hyperparameters)
    : prior_(prior),
      hyperparameters_(hyperparameters),
      basis_(observations.basis),
      intercept_(prior.intercept_mean),
      slope_(prior.slope_mean) {
  if (basis_.size() == 0) return;
  cholesky_ = FactorisedCovariance(observations, prior, hyperparameters);
  weights_ = observations.values - PriorMean(prior, basis_);
  cholesky_.triangularView<Eigen::Lower>().solveInPlace(weights_);
  cholesky_.triangularView<Eigen::Lower>().transpose().solveInPlace(weights_);
  intercept_ += Square(prior.intercept_stddev) * weights_.sum();
  slope_ += Square(prior.slope_stddev) * basis_.dot(weights_);
}

GaussianProcess::Prediction GaussianProcess::Predict(const MatrixXd& squared_distances,
                                                     const VectorXd& basis) const {
  Prediction result{.mean = PriorMean(prior_, basis)};
  result.variance = (Square(hyperparameters_.signal_stddev) + Square(prior_.intercept_stddev) +
                     Square(prior_.slope_stddev) * basis.array().square())
                        .matrix();
  if (basis_.size() == 0) return result;
  MatrixXd covariance = MaternCovariance(squared_distances, hyperparameters_);
  AddMeanCovariance(prior_, basis_, basis, covariance);
  result.mean.noalias() += covariance.transpose() * weights_;
  cholesky_.triangularView<Eigen::Lower>().solveInPlace(covariance);
  result.variance -= covariance.colwise().squaredNorm().transpose();
  result.variance = result.variance.cwiseMax(0.0);
  return result;
}

}  // namespace qpruner::search
