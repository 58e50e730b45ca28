// Uniformly random assignments under a byte budget.
#ifndef QPRUNER_SEARCH_FEASIBLE_SAMPLER_H_
#define QPRUNER_SEARCH_FEASIBLE_SAMPLER_H_

#include <cstdint>
#include <vector>

#include "search/budget_grid.h"
#include "search/random_stream.h"
#include "search/space.h"

namespace qpruner::search {

// Draws every assignment that fits the budget with the same probability, however tight the budget:
// a dynamic program knows for each group and each rest of the budget which share of the assignments
// of the later groups fits, and the groups are drawn in turn by these shares. Exact where
// BudgetGrid is (at most 4096 cells); else assignments within a grid unit a group of the budget may
// be missed. Immutable and thread-safe.
class FeasibleSampler {
 public:
  FeasibleSampler(const SearchSpace& space, int64_t budget_bytes);
  Assignment Draw(RandomStream& random) const;

 private:
  double Share(size_t group, int cells) const {
    return share_[group * (grid_.last_cell() + 1) + cells];
  }
  std::vector<int> choice_counts_;
  const BudgetGrid grid_;
  // Share(g, w): share of the assignments of groups g.. that take at most w cells.
  std::vector<double> share_;
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_FEASIBLE_SAMPLER_H_
