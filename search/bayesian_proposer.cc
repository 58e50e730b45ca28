#include "search/bayesian_proposer.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "absl/container/flat_hash_set.h"
#include "search/acquisition.h"
#include "search/gaussian_process.h"
#include "search/pareto.h"
#include "search/random_stream.h"

namespace qpruner::search {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

// See the header. A quarter: the interior of the front keeps most of the effort.
constexpr double kBudgetEmphasis = 0.25;
// The reference quality lies this part of the front's height above its worst point (the rule of
// BoTorch's infer_reference_point).
constexpr double kReferenceMargin = 0.1;
// More trials than these make proposals slow and add little: the front and the latest are kept.
constexpr size_t kMaxObservations = 256;
constexpr int kSensitivityStarts = 8;
constexpr int kIncumbentStarts = 6;
constexpr int kMaxSteps = 8;
constexpr int kSwapsPerStep = 96;

}  // namespace

BayesianProposer::BayesianProposer(const SearchSpace& space, QualityMetric metric,
                                   int64_t max_bytes, int64_t seed)
    : space_(space),
      metric_(metric),
      max_bytes_(std::min(max_bytes, LargestBytes(space))),
      seed_(seed),
      planner_(space, max_bytes_) {
  const Assignment smallest(space.groups.size(), 0);
  // Sums beyond 1 nat are of destroyed models and say nothing about what is worth bytes.
  smoothing_ =
      std::max(1e-4 * std::min(1.0, space.base_quality + TotalSensitivity(space, smallest)), 1e-9);
  double lowest = std::numeric_limits<double>::infinity();
  double highest = -lowest;
  for (const Group& group : space.groups) {
    lowest = std::min(lowest, std::log2(group.choices.front().bits));
    highest = std::max(highest, std::log2(group.choices.back().bits));
  }
  const double range = highest > lowest ? highest - lowest : 1.0;
  const double root = std::sqrt(static_cast<double>(space.groups.size()));
  for (const Group& group : space.groups) {
    std::vector<double>& row = features_.emplace_back();
    for (const Choice& choice : group.choices) {
      row.push_back((std::log2(choice.bits) - lowest) / range / root);
    }
  }
}

double BayesianProposer::Basis(double total_sensitivity) const {
  const double kl = space_.base_quality + total_sensitivity;
  return metric_ == QualityMetric::KL_DIVERGENCE ? std::log(kl + smoothing_) : kl;
}

double BayesianProposer::Value(double quality) const {
  if (metric_ == QualityMetric::PERPLEXITY) return std::log(std::max(quality, 1e-9));
  return std::log(std::max(quality, 0.0) + smoothing_);
}

// One proposal: the model of a history, and the search for its best assignment.
class BayesianProposer::Search {
 public:
  Search(const BayesianProposer& owner, std::span<const Trial> history, int index)
      : o_(owner), random_(owner.seed_, index), max_bytes_(owner.max_bytes_) {
    for (const Trial& trial : history) seen_.insert(trial.assignment);
    LowerMemoryCeiling(history);
    std::vector<const Trial*> measured, pending;
    for (const Trial& trial : history) {
      if (HasQuality(trial)) measured.push_back(&trial);
      if (trial.state == TrialState::PENDING) pending.push_back(&trial);
    }
    KeepRelevant(history, measured);
    for (const Trial* trial : measured) points_.push_back(trial->assignment);
    VectorXd values(measured.size());
    for (size_t i = 0; i < measured.size(); ++i) values[i] = o_.Value(measured[i]->quality);
    Observations observations = Observe(points_, values);
    hyperparameters_ = FitHyperparameters(observations, prior_);
    model_.emplace(observations, prior_, hyperparameters_);
    if (!pending.empty()) {
      std::vector<Assignment> all = points_;
      for (const Trial* trial : pending) all.push_back(trial->assignment);
      VectorXd believed(all.size());
      believed.head(values.size()) = values;
      for (size_t i = 0; i < pending.size(); ++i) {
        const Assignment& assignment = pending[i]->assignment;
        VectorXd basis(1);
        basis[0] = o_.Basis(TotalSensitivity(o_.space_, assignment));
        believed[values.size() + i] = model_->Predict(Distances(assignment), basis).mean[0];
      }
      points_ = std::move(all);
      values = believed;
      model_.emplace(Observe(points_, values), prior_, hyperparameters_);
    }
    std::vector<Point> front;
    for (size_t i = 0; i < points_.size(); ++i) {
      const auto bytes = static_cast<double>(TotalBytes(o_.space_, points_[i]));
      if (bytes <= static_cast<double>(max_bytes_)) front.push_back({bytes, values[i]});
    }
    const auto smallest = static_cast<double>(SmallestBytes(o_.space_));
    const double range = std::max(static_cast<double>(max_bytes_) - smallest, 1.0);
    Point reference{.bytes = static_cast<double>(max_bytes_) + kBudgetEmphasis * range};
    std::vector<size_t> order = NonDominated(front);
    if (order.empty()) {
      reference.quality = o_.Basis(TotalSensitivity(o_.space_, Assignment(o_.features_.size(), 0)));
    } else {
      const double worst = front[order.front()].quality;
      const double height = std::max(worst - front[order.back()].quality, 1.0);
      reference.quality = worst + kReferenceMargin * height;
    }
    improvement_.emplace(front, reference);
    // Trials on the front (pending ones too), by growing bytes: where local search begins.
    std::vector<size_t> position;
    for (size_t i = 0; i < points_.size(); ++i) {
      if (TotalBytes(o_.space_, points_[i]) <= max_bytes_) position.push_back(i);
    }
    for (size_t i : order) incumbents_.push_back(points_[position[i]]);
  }

  std::optional<Assignment> Best() {
    const int64_t smallest = SmallestBytes(o_.space_);
    const double range = static_cast<double>(max_bytes_ - smallest);
    for (int i = 0; i < kSensitivityStarts; ++i) {
      // One start in each eighth of the range, the last at the budget itself.
      const double part =
          i + 1 == kSensitivityStarts ? 1.0 : (i + random_.Uniform()) / kSensitivityStarts;
      Climb(o_.planner_.Plan(smallest + static_cast<int64_t>(part * range)));
    }
    // The best within the budget always, and others evenly.
    const int count = std::min<int>(kIncumbentStarts, static_cast<int>(incumbents_.size()));
    for (int i = 0; i < count; ++i) {
      Climb(incumbents_[incumbents_.size() - 1 - i * incumbents_.size() / count]);
    }
    return best_;
  }

  Fit Describe() const {
    return {model_->intercept(), model_->slope(), hyperparameters_.signal_stddev,
            hyperparameters_.length_scale, hyperparameters_.noise_stddev};
  }

 private:
  struct Move {
    int group = -1;
    int choice = 0;
  };

  // A trial that did not fit the device says that larger ones will not, unless one did.
  void LowerMemoryCeiling(std::span<const Trial> history) {
    int64_t largest_measured = 0;
    for (const Trial& trial : history) {
      if (HasQuality(trial)) largest_measured = std::max(largest_measured, trial.bytes);
    }
    for (const Trial& trial : history) {
      if (trial.state == TrialState::INFEASIBLE && trial.bytes > largest_measured &&
          trial.bytes > SmallestBytes(o_.space_)) {
        max_bytes_ = std::min(max_bytes_, trial.bytes - 1);
      }
    }
  }

  static void KeepRelevant(std::span<const Trial> history, std::vector<const Trial*>& measured) {
    if (measured.size() <= kMaxObservations) return;
    absl::flat_hash_set<const Trial*> keep;
    for (size_t i : ParetoFront(history)) keep.insert(&history[i]);
    for (size_t i = measured.size(); i-- > 0 && keep.size() < kMaxObservations;) {
      keep.insert(measured[i]);
    }
    std::erase_if(measured, [&](const Trial* trial) { return !keep.contains(trial); });
  }

  MatrixXd Features(std::span<const Assignment> points) const {
    MatrixXd x(o_.features_.size(), points.size());
    for (size_t i = 0; i < points.size(); ++i) {
      for (size_t g = 0; g < o_.features_.size(); ++g) x(g, i) = o_.features_[g][points[i][g]];
    }
    return x;
  }

  Observations Observe(std::span<const Assignment> points, const VectorXd& values) {
    x_ = Features(points);
    Observations result{.values = values};
    result.squared_distances.resize(points.size(), points.size());
    for (Eigen::Index i = 0; i < x_.cols(); ++i) {
      result.squared_distances.col(i) = (x_.colwise() - x_.col(i)).colwise().squaredNorm();
    }
    result.basis.resize(points.size());
    for (size_t i = 0; i < points.size(); ++i) {
      result.basis[i] = o_.Basis(TotalSensitivity(o_.space_, points[i]));
    }
    return result;
  }

  // Squared distances of one assignment to the observed points.
  VectorXd Distances(const Assignment& assignment) const {
    const VectorXd x = Features(std::span(&assignment, 1)).col(0);
    return (x_.colwise() - x).colwise().squaredNorm().transpose();
  }

  double Score(const GaussianProcess::Prediction& prediction, Eigen::Index i, int64_t bytes) const {
    return improvement_->Expected(static_cast<double>(bytes), prediction.mean[i],
                                  std::sqrt(prediction.variance[i]));
  }

  // Steepest ascent of the acquisition from `current`, which need not be a candidate itself.
  void Climb(Assignment current) {
    if (TotalBytes(o_.space_, current) > max_bytes_ || !climbed_.insert(current).second) return;
    double score = -1;
    if (!seen_.contains(current)) {
      VectorXd basis(1);
      basis[0] = o_.Basis(TotalSensitivity(o_.space_, current));
      score = Score(model_->Predict(Distances(current), basis), 0, TotalBytes(o_.space_, current));
      Offer(current, score);
    }
    for (int step = 0; step < kMaxSteps && Step(current, score); ++step) {
    }
  }

  void Offer(const Assignment& assignment, double score) {
    if (best_ && score <= best_score_) return;
    best_ = assignment;
    best_score_ = score;
  }

  // Moves to the best neighbour, if it is better. Neighbours: all single changes, and random pairs
  // of a raise and a lowering.
  bool Step(Assignment& current, double& score) {
    const SearchSpace& space = o_.space_;
    const int64_t bytes = TotalBytes(space, current);
    const double sensitivity = TotalSensitivity(space, current);
    const VectorXd distances = Distances(current);

    std::vector<Move> singles;
    std::vector<int> raises, lowerings;  // Positions in singles.
    for (size_t g = 0; g < current.size(); ++g) {
      for (size_t c = 0; c < space.groups[g].choices.size(); ++c) {
        const int choice = static_cast<int>(c);
        if (choice == current[g]) continue;
        (choice > current[g] ? raises : lowerings).push_back(static_cast<int>(singles.size()));
        singles.push_back({static_cast<int>(g), choice});
      }
    }
    // Change of the squared distances by each single move.
    MatrixXd change(x_.cols(), singles.size());
    for (size_t i = 0; i < singles.size(); ++i) {
      const auto [g, c] = singles[i];
      const double to = o_.features_[g][c];
      const double from = o_.features_[g][current[g]];
      // (to - x)^2 - (from - x)^2
      change.col(i) = ((to - from) * (to + from - 2 * x_.row(g).array())).transpose().matrix();
    }

    neighbours_.clear();
    const auto add = [&](int first, int second) {
      int64_t total = bytes;
      double sum = sensitivity;
      for (int i : {first, second}) {
        if (i < 0) continue;
        const std::vector<Choice>& choices = space.groups[singles[i].group].choices;
        const Choice& to = choices[singles[i].choice];
        const Choice& from = choices[current[singles[i].group]];
        total += to.bytes - from.bytes;
        sum += to.sensitivity - from.sensitivity;
      }
      if (total <= max_bytes_) neighbours_.push_back({first, second, total, std::max(sum, 0.0)});
    };
    for (size_t i = 0; i < singles.size(); ++i) add(static_cast<int>(i), -1);
    if (!raises.empty() && !lowerings.empty()) {
      for (int i = 0; i < kSwapsPerStep; ++i) {
        const int up = raises[random_.Below(static_cast<int>(raises.size()))];
        const int down = lowerings[random_.Below(static_cast<int>(lowerings.size()))];
        if (singles[up].group != singles[down].group) add(up, down);
      }
    }
    if (neighbours_.empty()) return false;

    const auto count = static_cast<Eigen::Index>(neighbours_.size());
    MatrixXd all(x_.cols(), count);
    VectorXd basis(count);
    for (Eigen::Index i = 0; i < count; ++i) {
      const Neighbour& n = neighbours_[i];
      all.col(i) = distances + change.col(n.first);
      if (n.second >= 0) all.col(i) += change.col(n.second);
      basis[i] = o_.Basis(n.sensitivity);
    }
    const GaussianProcess::Prediction prediction = model_->Predict(all, basis);
    std::optional<Assignment> next;
    for (Eigen::Index i = 0; i < count; ++i) {
      const double tried = Score(prediction, i, neighbours_[i].bytes);
      if (tried <= score) continue;
      Assignment assignment = current;
      for (int move : {neighbours_[i].first, neighbours_[i].second}) {
        if (move >= 0) assignment[singles[move].group] = singles[move].choice;
      }
      if (seen_.contains(assignment)) continue;
      score = tried;
      next = std::move(assignment);
    }
    if (!next) return false;
    current = *std::move(next);
    Offer(current, score);
    return true;
  }

  struct Neighbour {
    int first, second;  // Positions in singles; second is -1 for a single change.
    int64_t bytes;
    double sensitivity;
  };

  const BayesianProposer& o_;
  RandomStream random_;
  int64_t max_bytes_;
  const LinearMeanPrior prior_;
  absl::flat_hash_set<Assignment> seen_;
  absl::flat_hash_set<Assignment> climbed_;
  std::vector<Assignment> points_;  // Measured and pending.
  MatrixXd x_;                      // Features of the points, a column each.
  Hyperparameters hyperparameters_;
  std::optional<GaussianProcess> model_;
  std::optional<FrontImprovement> improvement_;
  std::vector<Assignment> incumbents_;
  std::vector<Neighbour> neighbours_;
  std::optional<Assignment> best_;
  double best_score_ = 0;
};

std::optional<Assignment> BayesianProposer::Propose(std::span<const Trial> history,
                                                    int index) const {
  return Search(*this, history, index).Best();
}

BayesianProposer::Fit BayesianProposer::FitModel(std::span<const Trial> history) const {
  return Search(*this, history, 0).Describe();
}

}  // namespace qpruner::search
