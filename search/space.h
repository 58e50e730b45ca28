// The search space: which precisions each group of linears may have, what they cost in bytes, and
// what was measured about them before the search began. Plain values; every function is pure.
#ifndef QPRUNER_SEARCH_SPACE_H_
#define QPRUNER_SEARCH_SPACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qpruner::search {

// One precision a group may have.
struct Choice {
  int bits = 0;       // Nominal width; what the format stores a weight in, without its scales.
  int64_t bytes = 0;  // Stored bytes of the group, scales included.
  // Mean KL(model || model with only this group quantized so), nats a token, measured. >= 0.
  double sensitivity = 0;
  // First-order estimate of the same from gradients. Recorded for the report; no optimizer uses it.
  double gradient_score = 0;
};

// Linears that share one precision.
struct Group {
  std::string name;
  int64_t parameter_count = 0;
  std::vector<Choice> choices;  // By growing bits and growing bytes; at most kMaxChoices.
  // Nats, and the same estimate with shuffled targets: what noise alone gives.
  double mutual_information = 0;
  double mutual_information_control = 0;
};

inline constexpr int kMaxChoices = 16;

struct SearchSpace {
  std::vector<Group> groups;  // In model order.
  int64_t fixed_bytes = 0;    // Weights that are not searched.
  // KL(original || model before quantization), nats a token; 0 if nothing was pruned.
  double base_quality = 0;
};

// The chosen position in Group::choices, one entry a group, in the order of the groups.
using Assignment = std::vector<int>;

// INVALID_ARGUMENT: names the first group that breaks a rule of the fields above, and the rule.
absl::Status Validate(const SearchSpace& space);

// INVALID_ARGUMENT: `assignment` does not have one valid choice for every group of `space`.
absl::Status Validate(const SearchSpace& space, const Assignment& assignment);

// INVALID_ARGUMENT: even the smallest assignment is larger than `budget_bytes`; says how many bytes
// it needs.
absl::Status ValidateBudget(const SearchSpace& space, int64_t budget_bytes);

// The functions below require a valid space and a valid assignment.

// Bytes of all stored weights: the groups as assigned, and fixed_bytes.
int64_t TotalBytes(const SearchSpace& space, const Assignment& assignment);
int64_t SmallestBytes(const SearchSpace& space);
int64_t LargestBytes(const SearchSpace& space);

// Stored bits a weight over the searched groups, scales included.
double AverageBits(const SearchSpace& space, const Assignment& assignment);

// The byte budget (fixed_bytes included) that says the same as at most `average_bits` a weight.
int64_t BudgetForAverageBits(const SearchSpace& space, double average_bits);

bool Feasible(const SearchSpace& space, const Assignment& assignment, int64_t budget_bytes);

// Sum of the sensitivities of the assigned choices: what the KL would be if errors only added up.
double TotalSensitivity(const SearchSpace& space, const Assignment& assignment);

struct UniformAssignment {
  int bits;
  Assignment assignment;
};

// Every width that all groups offer, by growing bits.
std::vector<UniformAssignment> UniformAssignments(const SearchSpace& space);

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_SPACE_H_
