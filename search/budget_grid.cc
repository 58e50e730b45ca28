#include "search/budget_grid.h"

#include <algorithm>
#include <numeric>

namespace qpruner::search {

BudgetGrid::BudgetGrid(const SearchSpace& space, int64_t max_bytes, int max_cells)
    : smallest_bytes_(SmallestBytes(space)) {
  int64_t divisor = 0;
  for (const Group& group : space.groups) {
    for (const Choice& choice : group.choices) {
      divisor = std::gcd(divisor, choice.bytes - group.choices.front().bytes);
    }
  }
  divisor = std::max<int64_t>(divisor, 1);
  const int64_t range = std::min(max_bytes, LargestBytes(space)) - smallest_bytes_;
  const int64_t steps = range / divisor;
  const int64_t merged = std::max<int64_t>(1, (steps + max_cells - 1) / max_cells);
  exact_ = merged == 1;
  unit_ = divisor * merged;
  last_cell_ = static_cast<int>(range / unit_);
  for (const Group& group : space.groups) {
    std::vector<int>& costs = costs_.emplace_back();
    for (const Choice& choice : group.choices) {
      const int64_t cells = (choice.bytes - group.choices.front().bytes + unit_ - 1) / unit_;
      // Anything beyond the grid is equally unaffordable; keeps int from overflowing.
      costs.push_back(static_cast<int>(std::min<int64_t>(cells, last_cell_ + 1)));
    }
  }
}

int BudgetGrid::CellOf(int64_t budget_bytes) const {
  if (budget_bytes < smallest_bytes_) return -1;
  return static_cast<int>(std::min<int64_t>((budget_bytes - smallest_bytes_) / unit_, last_cell_));
}

}  // namespace qpruner::search
