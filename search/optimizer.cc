#include "search/optimizer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "search/bayesian_proposer.h"
#include "search/feasible_sampler.h"
#include "search/mutual_information_plan.h"
#include "search/random_stream.h"
#include "search/sensitivity_plan.h"

namespace qpruner::search {
namespace {

using Seen = absl::flat_hash_set<Assignment>;

// Draws before falling back to enumeration: enough unless almost all assignments are known.
constexpr int kRandomDraws = 64;

// Plans that BAYESIAN starts from: the budget itself, then the middle, then the quarters.
constexpr double kStartingBudgets[] = {1.0, 0.5, 0.25, 0.75};

// The lexicographically first assignment within `max_bytes` that is not in `seen`. Only feasible
// prefixes are walked, so at most seen.size() + 1 assignments are looked at.
std::optional<Assignment> FirstUnseen(const SearchSpace& space, int64_t max_bytes,
                                      const Seen& seen) {
  Assignment assignment(space.groups.size(), 0);
  int64_t bytes = TotalBytes(space, assignment);
  while (bytes <= max_bytes) {
    if (!seen.contains(assignment)) return assignment;
    // Next in lexicographic order; a group that cannot grow within the budget starts again.
    size_t g = assignment.size();
    while (g-- > 0) {
      const std::vector<Choice>& choices = space.groups[g].choices;
      if (assignment[g] + 1 < static_cast<int>(choices.size())) {
        const int64_t added = choices[assignment[g] + 1].bytes - choices[assignment[g]].bytes;
        if (bytes + added <= max_bytes) {
          bytes += added;
          ++assignment[g];
          break;
        }
      }
      bytes -= choices[assignment[g]].bytes - choices[0].bytes;
      assignment[g] = 0;
      if (g == 0) return std::nullopt;
    }
  }
  return std::nullopt;
}

// A fixed list of plans, then whatever the algorithm goes on with.
class PlannedOptimizer : public Optimizer {
 public:
  PlannedOptimizer(Algorithm algorithm, SearchSpace space, Options options)
      : algorithm_(algorithm), space_(std::move(space)), options_(options) {
    max_bytes_ =
        std::min(options_.budget_bytes.value_or(LargestBytes(space_)), LargestBytes(space_));
    for (UniformAssignment& uniform : UniformAssignments(space_)) {
      AddPlan(std::move(uniform.assignment), absl::StrCat("uniform-", uniform.bits));
    }
    const int left = std::max(0, options_.max_trials - static_cast<int>(plans_.size()));
    switch (algorithm_) {
      case Algorithm::UNIFORM:
        break;
      case Algorithm::RANDOM:
        sampler_.emplace(space_, max_bytes_);
        break;
      case Algorithm::MUTUAL_INFORMATION:
        for (int i = 1; i <= left; ++i) {
          AddPlan(MutualInformationPlan(space_, Budget(static_cast<double>(i) / left)),
                  "mutual-information");
        }
        break;
      case Algorithm::SENSITIVITY_LP: {
        const SensitivityPlanner planner(space_, max_bytes_);
        for (int i = 1; i <= left; ++i) {
          AddPlan(planner.Plan(Budget(static_cast<double>(i) / left)), "sensitivity-lp");
        }
        break;
      }
      case Algorithm::BAYESIAN: {
        const SensitivityPlanner planner(space_, max_bytes_);
        for (double part : kStartingBudgets) AddPlan(planner.Plan(Budget(part)), "sensitivity-lp");
        AddPlan(MutualInformationPlan(space_, max_bytes_), "mutual-information");
        bayesian_.emplace(space_, options_.metric, max_bytes_, options_.seed);
        break;
      }
    }
  }

  absl::StatusOr<Proposal> Propose(std::span<const Trial> history, int index) const override {
    if (index < 1) {
      return absl::InvalidArgumentError(absl::StrCat("Proposals are numbered from 1, not ", index));
    }
    Seen seen;
    int previous = 0;
    for (const Trial& trial : history) {
      RETURN_IF_ERROR(Validate(space_, trial.assignment));
      if (trial.index <= previous || trial.index >= index) {
        return absl::InvalidArgumentError(absl::StrCat(
            "The history of proposal ", index, " must hold earlier trials by growing index, has ",
            trial.index, " after ", previous));
      }
      previous = trial.index;
      seen.insert(trial.assignment);
    }
    if (index > options_.max_trials) {
      return absl::OutOfRangeError(
          absl::StrCat("The search is over: it has at most ", options_.max_trials, " trials"));
    }
    for (size_t i = index - 1; i < plans_.size(); ++i) {
      if (!seen.contains(plans_[i].assignment)) return plans_[i];
    }
    if (bayesian_) {
      if (std::optional<Assignment> found = bayesian_->Propose(history, index)) {
        return Proposal{*std::move(found), "bayesian"};
      }
    } else if (sampler_) {
      RandomStream random(options_.seed, index);
      for (int i = 0; i < kRandomDraws; ++i) {
        Assignment drawn = sampler_->Draw(random);
        if (!seen.contains(drawn)) return Proposal{std::move(drawn), "random"};
      }
    } else {
      return absl::OutOfRangeError("The search is over: the algorithm has no further plan");
    }
    if (std::optional<Assignment> rest = FirstUnseen(space_, max_bytes_, seen)) {
      return Proposal{*std::move(rest), bayesian_ ? "bayesian" : "random"};
    }
    return absl::OutOfRangeError(
        "The search is over: every assignment within the budget was proposed");
  }

 private:
  int64_t Budget(double part) const {
    const int64_t smallest = SmallestBytes(space_);
    return smallest + static_cast<int64_t>(part * static_cast<double>(max_bytes_ - smallest));
  }

  void AddPlan(Assignment assignment, std::string origin) {
    if (planned_.insert(assignment).second) {
      plans_.push_back({std::move(assignment), std::move(origin)});
    }
  }

  const Algorithm algorithm_;
  const SearchSpace space_;
  const Options options_;
  int64_t max_bytes_;
  std::vector<Proposal> plans_;
  Seen planned_;
  std::optional<FeasibleSampler> sampler_;
  std::optional<BayesianProposer> bayesian_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(Algorithm algorithm, SearchSpace space,
                                                         Options options) {
  RETURN_IF_ERROR(Validate(space));
  if (options.budget_bytes) RETURN_IF_ERROR(ValidateBudget(space, *options.budget_bytes));
  if (options.max_trials < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_trials must be at least 1, is ", options.max_trials));
  }
  return std::make_unique<PlannedOptimizer>(algorithm, std::move(space), options);
}

}  // namespace qpruner::search
