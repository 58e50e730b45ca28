#include "search/optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "search/bayesian_proposer.h"
#include "search/pareto.h"
#include "search/selection.h"
#include "search/synthetic_model.h"

namespace qpruner::search {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Algorithm kAll[] = {Algorithm::UNIFORM, Algorithm::RANDOM, Algorithm::MUTUAL_INFORMATION,
                              Algorithm::SENSITIVITY_LP, Algorithm::BAYESIAN};

int64_t Middle(const SearchSpace& space, double part = 0.5) {
  const int64_t smallest = SmallestBytes(space);
  return smallest + static_cast<int64_t>(part * (LargestBytes(space) - smallest));
}

struct Outcome {
  std::vector<Trial> trials;
  std::vector<std::string> origins;
  absl::Status end;
};

// Proposes until the search is over; `parallelism` trials are pending at a time.
Outcome RunSearch(const Optimizer& optimizer, const SyntheticModel& model, int parallelism = 1) {
  Outcome run;
  const auto measure = [&](Trial& trial) {
    trial.state = TrialState::MEASURED;
    trial.quality = model.Quality(trial.assignment);
  };
  while (true) {
    const int index = static_cast<int>(run.trials.size()) + 1;
    absl::StatusOr<Proposal> proposal = optimizer.Propose(run.trials, index);
    if (!proposal.ok()) {
      run.end = proposal.status();
      break;
    }
    run.origins.push_back(proposal->origin);
    run.trials.push_back({.index = index,
                          .assignment = proposal->assignment,
                          .bytes = TotalBytes(model.space(), proposal->assignment)});
    if (index >= parallelism) measure(run.trials[index - parallelism]);
  }
  for (Trial& trial : run.trials) measure(trial);
  return run;
}

// Hypervolume of log KL against bytes within the budget, as parts of the box between the smallest
// and the largest uniform assignment.
double FrontQuality(const Outcome& run, const SyntheticModel& model, int64_t budget, size_t count) {
  const SearchSpace& space = model.space();
  const double smallest = static_cast<double>(SmallestBytes(space));
  const double range = static_cast<double>(budget) - smallest;
  const double worst = std::log(model.Quality(Assignment(space.groups.size(), 0)));
  const double height = worst - std::log(space.base_quality);
  std::vector<Point> points;
  for (size_t i = 0; i < std::min(count, run.trials.size()); ++i) {
    const Trial& trial = run.trials[i];
    if (trial.bytes > budget) continue;
    points.push_back({(static_cast<double>(trial.bytes) - smallest) / range,
                      1 + (std::log(trial.quality) - worst) / height});
  }
  return Hypervolume(points, {1.0 + 1e-9, 1.0});
}

TEST(OptimizerTest, EverySearchBeginsWithTheUniformAssignments) {
  const SyntheticModel model(6, {4, 8, 16}, 0.5, 1);
  for (Algorithm algorithm : kAll) {
    auto optimizer = MakeOptimizer(algorithm, model.space(),
                                   {.budget_bytes = Middle(model.space(), 0.2), .max_trials = 12});
    ASSERT_TRUE(optimizer.ok());
    const Outcome run = RunSearch(**optimizer, model);
    ASSERT_GE(run.origins.size(), 3u);
    EXPECT_THAT(std::vector(run.origins.begin(), run.origins.begin() + 3),
                ElementsAre("uniform-4", "uniform-8", "uniform-16"));
    EXPECT_EQ(run.end.code(), absl::StatusCode::kOutOfRange);
    if (algorithm == Algorithm::UNIFORM) {
      EXPECT_EQ(run.origins.size(), 3u);
    }
    if (algorithm == Algorithm::BAYESIAN) {
      EXPECT_EQ(run.origins.back(), "bayesian");
    }
    if (algorithm == Algorithm::RANDOM) {
      EXPECT_EQ(run.origins.back(), "random");
    }
  }
}

TEST(OptimizerTest, NeverRepeatsAndNeverExceedsTheBudget) {
  const SyntheticModel model(10, {3, 4, 8}, 0.5, 2);
  for (Algorithm algorithm : kAll) {
    for (double part : {0.02, 0.3, 1.0}) {
      const int64_t budget = Middle(model.space(), part);
      auto optimizer =
          MakeOptimizer(algorithm, model.space(), {.budget_bytes = budget, .max_trials = 25});
      const Outcome run = RunSearch(**optimizer, model, /*parallelism=*/3);
      std::set<Assignment> seen;
      for (size_t i = 0; i < run.trials.size(); ++i) {
        EXPECT_TRUE(seen.insert(run.trials[i].assignment).second) << "trial " << i + 1;
        if (i >= 3) {
          EXPECT_LE(run.trials[i].bytes, budget) << run.origins[i];
        }
      }
    }
  }
}

TEST(OptimizerTest, ARebuiltOptimizerContinuesTheSameSearch) {
  const SyntheticModel model(12, {3, 4, 8}, 0.5, 3);
  const Options options{.budget_bytes = Middle(model.space()), .seed = 7, .max_trials = 24};
  for (Algorithm algorithm : {Algorithm::RANDOM, Algorithm::BAYESIAN}) {
    const Outcome undisturbed =
        RunSearch(**MakeOptimizer(algorithm, model.space(), options), model);
    ASSERT_EQ(undisturbed.trials.size(), 24u);
    for (int index : {9, 10, 17, 24}) {
      auto rebuilt = MakeOptimizer(algorithm, model.space(), options);
      const auto proposal =
          (*rebuilt)->Propose(std::span(undisturbed.trials).first(index - 1), index);
      ASSERT_TRUE(proposal.ok());
      EXPECT_EQ(proposal->assignment, undisturbed.trials[index - 1].assignment);
      EXPECT_EQ(proposal->origin, undisturbed.origins[index - 1]);
    }
  }
}

TEST(OptimizerTest, TheSeedMatters) {
  const SyntheticModel model(12, {3, 4, 8}, 0.5, 3);
  std::set<Assignment> last;
  for (int seed : {1, 2}) {
    auto optimizer =
        MakeOptimizer(Algorithm::RANDOM, model.space(), {.seed = seed, .max_trials = 20});
    last.insert(RunSearch(**optimizer, model).trials.back().assignment);
  }
  EXPECT_EQ(last.size(), 2u);
}

TEST(OptimizerTest, ProposesEverythingWithinTheBudgetBeforeItEnds) {
  const SyntheticModel model(3, {4, 8}, 0.5, 4);
  for (Algorithm algorithm : {Algorithm::RANDOM, Algorithm::BAYESIAN}) {
    auto optimizer = MakeOptimizer(algorithm, model.space(), {.max_trials = 100});
    const Outcome run = RunSearch(**optimizer, model);
    EXPECT_EQ(run.trials.size(), 8u);
    EXPECT_THAT(std::string(run.end.message()), HasSubstr("every assignment"));
  }
}

TEST(OptimizerTest, EndsAtMaxTrials) {
  const SyntheticModel model(8, {4, 8}, 0.5, 4);
  auto optimizer = MakeOptimizer(Algorithm::BAYESIAN, model.space(), {.max_trials = 9});
  const Outcome run = RunSearch(**optimizer, model);
  EXPECT_EQ(run.trials.size(), 9u);
  EXPECT_THAT(std::string(run.end.message()), HasSubstr("at most 9 trials"));
}

TEST(OptimizerTest, PendingTrialsSpreadParallelProposals) {
  const SyntheticModel model(12, {3, 4, 8}, 0.5, 5);
  auto optimizer = MakeOptimizer(Algorithm::BAYESIAN, model.space(), {.max_trials = 40});
  const Outcome run = RunSearch(**optimizer, model, /*parallelism=*/8);
  ASSERT_EQ(run.trials.size(), 40u);
  // The believed outcome of a pending trial takes away the reason to try next to it: bytes of eight
  // proposals in a row span a good part of the range.
  const auto [low, high] =
      std::minmax_element(run.trials.begin() + 24, run.trials.begin() + 32,
                          [](const Trial& a, const Trial& b) { return a.bytes < b.bytes; });
  EXPECT_GT(high->bytes - low->bytes,
            (LargestBytes(model.space()) - SmallestBytes(model.space())) / 5);
}

TEST(OptimizerTest, WorksWhenNothingWasMeasuredYet) {
  const SyntheticModel model(12, {3, 4, 8}, 0.5, 6);
  for (TrialState state : {TrialState::PENDING, TrialState::INFEASIBLE}) {
    auto optimizer = MakeOptimizer(Algorithm::BAYESIAN, model.space(), {.max_trials = 40});
    std::vector<Trial> history;
    for (int index = 1; index <= 20; ++index) {
      const auto proposal = (*optimizer)->Propose(history, index);
      ASSERT_TRUE(proposal.ok());
      history.push_back({.index = index,
                         .assignment = proposal->assignment,
                         .state = state,
                         .bytes = TotalBytes(model.space(), proposal->assignment)});
    }
  }
}

TEST(OptimizerTest, StaysBelowWhatDidNotFitTheDevice) {
  const SyntheticModel model(12, {3, 4, 8}, 0.5, 6);
  auto optimizer = MakeOptimizer(Algorithm::BAYESIAN, model.space(), {.max_trials = 40});
  const int64_t memory = Middle(model.space(), 0.4);
  std::vector<Trial> history;
  for (int index = 1; index <= 30; ++index) {
    const auto proposal = (*optimizer)->Propose(history, index);
    ASSERT_TRUE(proposal.ok());
    const int64_t bytes = TotalBytes(model.space(), proposal->assignment);
    Trial trial{.index = index, .assignment = proposal->assignment, .bytes = bytes};
    trial.state = bytes > memory ? TrialState::INFEASIBLE : TrialState::MEASURED;
    trial.quality = model.Quality(proposal->assignment);
    if (proposal->origin == "bayesian") {
      for (const Trial& earlier : history) {
        if (earlier.state == TrialState::INFEASIBLE) {
          EXPECT_LT(bytes, earlier.bytes);
        }
      }
    }
    history.push_back(trial);
  }
}

TEST(OptimizerTest, DestroyedModelsAndZeroDivergenceDoNotConfuseIt) {
  const SyntheticModel model(12, {3, 4, 16}, 0.5, 6);
  SearchSpace space = model.space();
  space.base_quality = 0;
  auto optimizer = MakeOptimizer(Algorithm::BAYESIAN, space, {.max_trials = 40});
  std::vector<Trial> history;
  for (int index = 1; index <= 30; ++index) {
    const auto proposal = (*optimizer)->Propose(history, index);
    ASSERT_TRUE(proposal.ok());
    double quality = model.Quality(proposal->assignment) - model.space().base_quality;
    if (proposal->origin == "uniform-16") quality = 0;
    if (proposal->origin == "uniform-3") quality = std::numeric_limits<double>::infinity();
    history.push_back({.index = index,
                       .assignment = proposal->assignment,
                       .state = TrialState::MEASURED,
                       .quality = quality,
                       .bytes = TotalBytes(space, proposal->assignment)});
  }
}

TEST(OptimizerTest, RefusesWhatMakesNoSense) {
  const SyntheticModel model(3, {4, 8}, 0.5, 4);
  const SearchSpace& space = model.space();
  EXPECT_THAT(
      std::string(MakeOptimizer(Algorithm::RANDOM, space, {.budget_bytes = 10}).status().message()),
      HasSubstr("smallest assignment needs"));
  EXPECT_FALSE(MakeOptimizer(Algorithm::RANDOM, space, {.max_trials = 0}).ok());
  EXPECT_FALSE(MakeOptimizer(Algorithm::RANDOM, SearchSpace(), {}).ok());
  auto optimizer = MakeOptimizer(Algorithm::RANDOM, space, {});
  const Trial wrong_size{.index = 1, .assignment = {0}};
  EXPECT_EQ((*optimizer)->Propose({&wrong_size, 1}, 2).status().code(),
            absl::StatusCode::kInvalidArgument);
  const Trial too_late{.index = 2, .assignment = {0, 0, 0}};
  EXPECT_EQ((*optimizer)->Propose({&too_late, 1}, 2).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*optimizer)->Propose({}, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BayesianProposerTest, LearnsWhatSensitivitiesAreWorth) {
  // True log KL = -0.5 + 0.7 log(additive KL): errors saturate.
  const SyntheticModel model(12, {3, 4, 8}, 0.0, 9);
  const SearchSpace& space = model.space();
  auto sampler = MakeOptimizer(Algorithm::RANDOM, space, {.max_trials = 30});
  std::vector<Trial> history = RunSearch(**sampler, model).trials;
  for (Trial& trial : history) trial.quality = std::exp(-0.5 + 0.7 * std::log(trial.quality));
  const BayesianProposer proposer(space, QualityMetric::KL_DIVERGENCE, LargestBytes(space), 1);
  const BayesianProposer::Fit fit = proposer.FitModel(history);
  // The smoothing term bends the line a little.
  EXPECT_NEAR(fit.slope, 0.7, 0.03);
  EXPECT_NEAR(fit.intercept, -0.5, 0.1);
  EXPECT_LT(fit.signal_stddev, 0.1);
}

// The claim of the library. Interactions of strength 0.8 change a plan's KL by tens of percent, and
// the additive scores do not show them. The margin of 0.05 is half the smallest gap seen (0.097:
// 0.228 against 0.131, seed 2); the sensitivity sweep is close, and must not win.
TEST(OptimizerTest, BayesianBeatsRandomAndUniformOnInteractingGroups) {
  for (int seed = 1; seed <= 3; ++seed) {
    const SyntheticModel model(20, {3, 4, 8}, 0.8, seed);
    const int64_t budget = Middle(model.space(), 0.6);
    const Options options{.budget_bytes = budget, .seed = seed, .max_trials = 40};
    std::map<Algorithm, double> front, best;
    for (Algorithm algorithm : kAll) {
      const Outcome run = RunSearch(**MakeOptimizer(algorithm, model.space(), options), model);
      front[algorithm] = FrontQuality(run, model, budget, 40);
      best[algorithm] = run.trials[*ChooseTrial(run.trials, budget)].quality;
    }
    EXPECT_GT(front[Algorithm::BAYESIAN], front[Algorithm::RANDOM] + 0.05);
    EXPECT_GT(front[Algorithm::BAYESIAN], front[Algorithm::UNIFORM] + 0.05);
    EXPECT_GT(front[Algorithm::BAYESIAN], front[Algorithm::MUTUAL_INFORMATION] + 0.05);
    EXPECT_GE(front[Algorithm::BAYESIAN], front[Algorithm::SENSITIVITY_LP]);
    EXPECT_LE(best[Algorithm::BAYESIAN], best[Algorithm::SENSITIVITY_LP]);
  }
}

}  // namespace
}  // namespace qpruner::search
