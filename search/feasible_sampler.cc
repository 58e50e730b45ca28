#include "search/feasible_sampler.h"

#include <cstddef>

namespace qpruner::search {
namespace {
constexpr int kMaxCells = 4096;
}  // namespace

FeasibleSampler::FeasibleSampler(const SearchSpace& space, int64_t budget_bytes)
    : grid_(space, budget_bytes, kMaxCells) {
  const size_t groups = space.groups.size();
  const int width = grid_.last_cell() + 1;
  for (const Group& group : space.groups) {
    choice_counts_.push_back(static_cast<int>(group.choices.size()));
  }
  share_.assign((groups + 1) * width, 0.0);
  for (int w = 0; w < width; ++w) share_[groups * width + w] = 1.0;
  for (size_t g = groups; g-- > 0;) {
    for (int c = 0; c < choice_counts_[g]; ++c) {
      for (int w = grid_.Cost(static_cast<int>(g), c); w < width; ++w) {
        share_[g * width + w] +=
            Share(g + 1, w - grid_.Cost(static_cast<int>(g), c)) / choice_counts_[g];
      }
    }
  }
}

Assignment FeasibleSampler::Draw(RandomStream& random) const {
  Assignment result(choice_counts_.size(), 0);
  int cells = grid_.last_cell();
  for (size_t g = 0; g < result.size(); ++g) {
    double target = random.Uniform() * Share(g, cells) * choice_counts_[g];
    // Falls through to the smallest choice, which always fits, if rounding leaves a rest.
    for (int c = 0; c < choice_counts_[g]; ++c) {
      const int cost = grid_.Cost(static_cast<int>(g), c);
      if (cost > cells) break;
      target -= Share(g + 1, cells - cost);
      if (target < 0) {
        result[g] = c;
        break;
      }
    }
    cells -= grid_.Cost(static_cast<int>(g), result[g]);
  }
  return result;
}

}  // namespace qpruner::search
