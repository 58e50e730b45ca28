// A made-up model whose quality is known in closed form, for tests and benchmarks of the search.
#ifndef QPRUNER_SEARCH_SYNTHETIC_MODEL_H_
#define QPRUNER_SEARCH_SYNTHETIC_MODEL_H_

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "search/random_stream.h"
#include "search/space.h"

namespace qpruner::search {

// Sensitivities are measured one group at a time, exactly; what they do not show is that the errors
// of neighbouring groups partly cancel or reinforce each other when both are coarse:
//
//   KL(x) = base + sum_g s_g(x_g) + strength * sum_g r_g sqrt(s_g(x_g) s_{g+1}(x_{g+1})),
//
// r_g in [-1, 1] at random. Noise-free, so that tests are about the search alone.
class SyntheticModel {
 public:
  SyntheticModel(int group_count, std::vector<int> bits, double strength, int64_t seed)
      : strength_(strength) {
    RandomStream random(seed, 0);
    space_.fixed_bytes = 4096;
    space_.base_quality = 1e-3;
    for (int g = 0; g < group_count; ++g) {
      Group group{.name = absl::StrCat("group.", g)};
      group.parameter_count = 64 * (16 + random.Below(48));
      // Widely spread, as in trained models, where a few layers matter most.
      const double scale = 0.02 * std::exp(3.0 * (random.Uniform() - 0.5));
      for (int b : bits) {
        group.choices.push_back(
            {.bits = b,
             .bytes = group.parameter_count * b / 8 + group.parameter_count / 16,
             // Squared rounding error falls by four a bit.
             .sensitivity = b >= 16 ? 0 : scale * std::exp2(2.0 * (4 - b))});
      }
      group.mutual_information = random.Uniform();
      group.mutual_information_control = 0.5;
      space_.groups.push_back(group);
      reinforcement_.push_back(2 * random.Uniform() - 1);
    }
  }

  const SearchSpace& space() const { return space_; }

  double Quality(const Assignment& assignment) const {
    double kl = space_.base_quality + TotalSensitivity(space_, assignment);
    for (size_t g = 0; g + 1 < assignment.size(); ++g) {
      kl += strength_ * reinforcement_[g] *
            std::sqrt(space_.groups[g].choices[assignment[g]].sensitivity *
                      space_.groups[g + 1].choices[assignment[g + 1]].sensitivity);
    }
    return kl;
  }

 private:
  const double strength_;
  SearchSpace space_;
  std::vector<double> reinforcement_;
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_SYNTHETIC_MODEL_H_
