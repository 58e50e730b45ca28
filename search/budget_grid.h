// The byte budget as a small number of cells, for dynamic programs over (group, bytes spent).
#ifndef QPRUNER_SEARCH_BUDGET_GRID_H_
#define QPRUNER_SEARCH_BUDGET_GRID_H_

#include <cstdint>
#include <vector>

#include "search/space.h"

namespace qpruner::search {

// Counts bytes above the smallest assignment in units. The unit is the greatest common divisor of
// all byte differences if that gives at most `max_cells` cells; then nothing is lost. Else it is
// the smallest multiple of it that does, and costs are rounded up: what fits the grid fits the
// budget, and at most one unit a group is wasted.
class BudgetGrid {
 public:
  // Reaches up to `max_bytes`, at least SmallestBytes(space).
  BudgetGrid(const SearchSpace& space, int64_t max_bytes, int max_cells);

  // Cells 0 to last_cell() are budgets; cell 0 is the smallest assignment.
  int last_cell() const { return last_cell_; }
  // The largest cell within `budget_bytes`; negative if the smallest assignment does not fit.
  int CellOf(int64_t budget_bytes) const;
  // Cells that a choice takes above the group's smallest choice.
  int Cost(int group, int choice) const { return costs_[group][choice]; }
  bool exact() const { return exact_; }

 private:
  int64_t smallest_bytes_;
  int64_t unit_ = 1;
  int last_cell_ = 0;
  bool exact_ = true;
  std::vector<std::vector<int>> costs_;
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_BUDGET_GRID_H_
