#include "search/sensitivity_plan.h"

#include <algorithm>
#include <cstddef>

namespace qpruner::search {
namespace {

constexpr int kMaxCells = 16384;

// Takes the affordable upgrade of best gain a byte until none is left.
void SpendLeftOver(const SearchSpace& space, int64_t budget_bytes, Assignment& plan) {
  int64_t left = budget_bytes - TotalBytes(space, plan);
  while (true) {
    double best_gain = 0;
    size_t best_group = 0;
    int best_choice = 0;
    for (size_t g = 0; g < space.groups.size(); ++g) {
      const std::vector<Choice>& choices = space.groups[g].choices;
      const Choice& now = choices[plan[g]];
      for (size_t c = plan[g] + 1; c < choices.size(); ++c) {
        const int64_t added = choices[c].bytes - now.bytes;
        if (added > left) break;
        const double gain = (now.sensitivity - choices[c].sensitivity) / static_cast<double>(added);
        if (gain > best_gain) {
          best_gain = gain;
          best_group = g;
          best_choice = static_cast<int>(c);
        }
      }
    }
    if (best_gain <= 0) return;
    const std::vector<Choice>& choices = space.groups[best_group].choices;
    left -= choices[best_choice].bytes - choices[plan[best_group]].bytes;
    plan[best_group] = best_choice;
  }
}

}  // namespace

SensitivityPlanner::SensitivityPlanner(const SearchSpace& space, int64_t max_bytes)
    : space_(space), max_bytes_(max_bytes), grid_(space, max_bytes, kMaxCells) {
  const int width = grid_.last_cell() + 1;
  choice_.assign(space_.groups.size() * width, 0);
  std::vector<double> best(width, 0.0);
  std::vector<double> next(width);
  for (size_t g = 0; g < space_.groups.size(); ++g) {
    const std::vector<Choice>& choices = space_.groups[g].choices;
    uint8_t* taken = choice_.data() + g * width;
    // The smallest choice costs nothing, so that every cell has a plan.
    for (int w = 0; w < width; ++w) next[w] = best[w] + choices[0].sensitivity;
    for (size_t c = 1; c < choices.size(); ++c) {
      const int cost = grid_.Cost(static_cast<int>(g), static_cast<int>(c));
      for (int w = cost; w < width; ++w) {
        const double sum = best[w - cost] + choices[c].sensitivity;
        if (sum < next[w]) {
          next[w] = sum;
          taken[w] = static_cast<uint8_t>(c);
        }
      }
    }
    best.swap(next);
  }
}

Assignment SensitivityPlanner::Plan(int64_t budget_bytes) const {
  budget_bytes = std::min(budget_bytes, max_bytes_);
  const int width = grid_.last_cell() + 1;
  int cell = std::max(0, grid_.CellOf(budget_bytes));
  Assignment plan(space_.groups.size());
  for (size_t g = plan.size(); g-- > 0;) {
    plan[g] = choice_[g * width + cell];
    cell -= grid_.Cost(static_cast<int>(g), plan[g]);
  }
  if (!grid_.exact()) SpendLeftOver(space_, budget_bytes, plan);
  return plan;
}

}  // namespace qpruner::search
