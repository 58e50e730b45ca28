// The mutual-information allocation of QPruner (arXiv 2412.11629), as its authors later coded it.
#ifndef QPRUNER_SEARCH_MUTUAL_INFORMATION_PLAN_H_
#define QPRUNER_SEARCH_MUTUAL_INFORMATION_PLAN_H_

#include <cstdint>

#include "search/space.h"

namespace qpruner::search {

// Starts with every group at its smallest choice and repeatedly raises by one step the group of
// largest max(I, 0) * log2(next bits / bits) / ((next bits - bits) * parameter_count) among those
// whose step still fits; ends when none fits or none gains. Ties go to the earlier group.
// Requires budget_bytes >= SmallestBytes(space).
Assignment MutualInformationPlan(const SearchSpace& space, int64_t budget_bytes);

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_MUTUAL_INFORMATION_PLAN_H_
