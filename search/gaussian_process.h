// Gaussian process regression with a linear prior mean (Rasmussen & Williams, "Gaussian Processes
// for Machine Learning", 2006).
//
//   y = a + b m(x) + f(x) + noise,   f ~ GP(0, s^2 Matern52(|x - x'| / l)),   noise ~ N(0, n^2)
//
// with independent normal priors on a and b, integrated out: their posterior is generalised least
// squares with a ridge (section 2.7), and is computed through the equivalent kernel
// s^2 Matern52 + Var(a) + Var(b) m(x) m(x'), so that the uncertainty of the fit widens predictions.
// Points enter as squared distances and m-values, so callers choose the geometry and can update
// distances incrementally. Pure functions and immutable values; nothing is random.
#ifndef QPRUNER_SEARCH_GAUSSIAN_PROCESS_H_
#define QPRUNER_SEARCH_GAUSSIAN_PROCESS_H_

#include <Eigen/Core>

namespace qpruner::search {

struct LinearMeanPrior {
  double intercept_mean = 0;
  double intercept_stddev = 10;
  double slope_mean = 1;
  double slope_stddev = 1;
};

struct Hyperparameters {
  double signal_stddev = 0.3;  // s, in units of y.
  double length_scale = 0.5;   // l, in units of distance.
  double noise_stddev = 0.03;  // n, in units of y.
};

// What was seen at n points.
struct Observations {
  Eigen::MatrixXd squared_distances;  // n x n.
  Eigen::VectorXd basis;              // m(x).
  Eigen::VectorXd values;             // y.
};

// log N(y; prior), eq. 2.43.
double LogMarginalLikelihood(const Observations& observations, const LinearMeanPrior& prior,
                             const Hyperparameters& hyperparameters);

// Maximises the marginal likelihood times weak log-normal priors (centred on the defaults above)
// by a pattern search in log space, within s in [0.01, 3], l in [0.05, 5], n in [0.001, 0.5].
// The priors and bounds are for y a log of a quality and points in a unit ball: they only matter
// while there are few observations. Deterministic; at most 64 Cholesky factorisations.
Hyperparameters FitHyperparameters(const Observations& observations, const LinearMeanPrior& prior);

class GaussianProcess {
 public:
  GaussianProcess(const Observations& observations, const LinearMeanPrior& prior,
                  const Hyperparameters& hyperparameters);

  struct Prediction {
    Eigen::VectorXd mean;
    Eigen::VectorXd variance;  // Of the noise-free value; >= 0.
  };
  // For m points: `squared_distances` (n x m) to the observed points, and their m-values.
  Prediction Predict(const Eigen::MatrixXd& squared_distances, const Eigen::VectorXd& basis) const;

  // Posterior means of a and b.
  double intercept() const { return intercept_; }
  double slope() const { return slope_; }

 private:
  const LinearMeanPrior prior_;
  const Hyperparameters hyperparameters_;
  const Eigen::VectorXd basis_;
  Eigen::MatrixXd cholesky_;  // Lower.
  Eigen::VectorXd weights_;   // Covariance^-1 (y - prior mean).
  double intercept_;
  double slope_;
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_GAUSSIAN_PROCESS_H_
