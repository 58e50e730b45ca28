// Plans that spend a byte budget where the measured sensitivities say it helps most.
#ifndef QPRUNER_SEARCH_SENSITIVITY_PLAN_H_
#define QPRUNER_SEARCH_SENSITIVITY_PLAN_H_

#include <cstdint>
#include <vector>

#include "search/budget_grid.h"
#include "search/space.h"

namespace qpruner::search {

// Minimises the sum of sensitivities under a byte budget: a multiple-choice knapsack, solved by
// dynamic programming over (group, bytes) once for all budgets. Exact where BudgetGrid is; else the
// rounding costs at most one grid unit (1/16384 of the range) a group, part of which is won back by
// spending what is left over greedily. The DP is taken over the linear program that the method is
// often named after because with few groups the LP's rounding loses a whole group's step.
// Immutable and thread-safe. Holds groups x 16384 bytes.
class SensitivityPlanner {
 public:
  // Plans for budgets up to `max_bytes`. Keeps a copy of `space`, which must be valid, as
  // `max_bytes` must be: at least SmallestBytes(space).
  SensitivityPlanner(const SearchSpace& space, int64_t max_bytes);

  // The plan for a budget; one below SmallestBytes is taken as SmallestBytes, one above the
  // constructor's as that.
  Assignment Plan(int64_t budget_bytes) const;

 private:
  const SearchSpace space_;
  const int64_t max_bytes_;
  const BudgetGrid grid_;
  // choice_[g * (last_cell + 1) + w]: what group g takes when groups 0..g share w cells.
  std::vector<uint8_t> choice_;
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_SENSITIVITY_PLAN_H_
