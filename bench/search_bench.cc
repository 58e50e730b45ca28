// How much processor time a proposal takes (on one thread). Not a test: it depends on the machine.
//
//   ninja -C build/release search_bench && build/release/bench/search_bench
//
// For each size: a search of the synthetic model up to the named number of trials; then the median
// and the slowest of 9 proposals that follow, and what building the optimizer takes.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "search/optimizer.h"
#include "search/synthetic_model.h"

namespace {

using namespace qpruner::search;  // NOLINT: a small program.

double Milliseconds(std::clock_t since) {
  return 1e3 * static_cast<double>(std::clock() - since) / CLOCKS_PER_SEC;
}

void Measure(int groups, std::vector<int> bits, int trials, int pending) {
  constexpr int kMeasured = 9;
  const SyntheticModel model(groups, bits, 0.5, 1);
  const SearchSpace& space = model.space();
  const Options options{
      .budget_bytes = SmallestBytes(space) + (LargestBytes(space) - SmallestBytes(space)) / 2,
      .max_trials = trials + kMeasured};
  const auto start = std::clock();
  const auto optimizer = *MakeOptimizer(Algorithm::BAYESIAN, space, options);
  const double construction = Milliseconds(start);
  // Random trials instead of the search's own: equally many, sooner.
  const auto random = *MakeOptimizer(Algorithm::RANDOM, space, options);
  std::vector<Trial> history;
  std::vector<double> times;
  for (int index = 1; index <= trials + kMeasured; ++index) {
    const auto begin = std::clock();
    const auto proposal = *(index <= trials - 20 ? random : optimizer)->Propose(history, index);
    if (index > trials) times.push_back(Milliseconds(begin));
    history.push_back(
        {.index = index,
         .assignment = proposal.assignment,
         .state = index > trials - pending ? TrialState::PENDING : TrialState::MEASURED,
         .quality = model.Quality(proposal.assignment),
         .bytes = TotalBytes(space, proposal.assignment)});
  }
  std::sort(times.begin(), times.end());
  std::printf("%6d %8zu %7d %8d %12.1f %12.1f %12.1f\n", groups, bits.size(), trials, pending,
              times[times.size() / 2], times.back(), construction);
}

}  // namespace

int main() {
  std::printf("groups  choices  trials  pending    median ms   slowest ms  construct ms\n");
  Measure(20, {3, 4, 8}, 30, 0);
  Measure(60, {4, 8, 16}, 100, 0);
  Measure(60, {4, 8, 16}, 100, 8);
  Measure(60, {2, 3, 4, 8, 16}, 100, 8);
  Measure(240, {4, 8, 16}, 100, 0);
  Measure(240, {4, 8, 16}, 1000, 0);
}
