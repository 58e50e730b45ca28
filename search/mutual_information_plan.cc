#include "search/mutual_information_plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace qpruner::search {

Assignment MutualInformationPlan(const SearchSpace& space, int64_t budget_bytes) {
  Assignment plan(space.groups.size(), 0);
  int64_t left = budget_bytes - SmallestBytes(space);
  while (true) {
    double best_gain = 0;
    size_t best_group = 0;
    for (size_t g = 0; g < space.groups.size(); ++g) {
      const Group& group = space.groups[g];
      if (plan[g] + 1 == static_cast<int>(group.choices.size())) continue;
      const Choice& now = group.choices[plan[g]];
      const Choice& next = group.choices[plan[g] + 1];
      if (next.bytes - now.bytes > left) continue;
      const double added_bits =
          static_cast<double>(next.bits - now.bits) * static_cast<double>(group.parameter_count);
      const double gain = std::max(group.mutual_information, 0.0) *
                          std::log2(static_cast<double>(next.bits) / now.bits) / added_bits;
      if (gain > best_gain) {
        best_gain = gain;
        best_group = g;
      }
    }
    if (best_gain <= 0) return plan;
    const std::vector<Choice>& choices = space.groups[best_group].choices;
    left -= choices[plan[best_group] + 1].bytes - choices[plan[best_group]].bytes;
    ++plan[best_group];
  }
}

}  // namespace qpruner::search
