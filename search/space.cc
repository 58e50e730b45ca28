#include "search/space.h"

#include <cmath>
#include <cstddef>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::search {
namespace {

// Groups and choices beyond these would overflow nothing, but mean a mistake upstream.
constexpr int64_t kMaxBytes = int64_t{1} << 50;

absl::Status BadGroup(const Group& group, size_t position, const std::string& rule) {
  return absl::InvalidArgumentError(
      absl::StrCat("Search group ", position, " (\"", group.name, "\"): ", rule));
}

absl::Status ValidateGroup(const Group& group, size_t position) {
  if (group.name.empty()) return BadGroup(group, position, "the name must not be empty");
  if (group.parameter_count <= 0) {
    return BadGroup(group, position,
                    absl::StrCat("parameter_count must be positive, is ", group.parameter_count));
  }
  if (group.choices.empty() || group.choices.size() > kMaxChoices) {
    return BadGroup(group, position,
                    absl::StrCat("must have 1 to ", kMaxChoices, " choices of precision, has ",
                                 group.choices.size()));
  }
  if (!std::isfinite(group.mutual_information) ||
      !std::isfinite(group.mutual_information_control)) {
    return BadGroup(group, position, "mutual information and its control must be finite");
  }
  const Choice* previous = nullptr;
  for (const Choice& choice : group.choices) {
    if (choice.bits <= 0 || choice.bits > 64) {
      return BadGroup(group, position, absl::StrCat("bits must be 1 to 64, is ", choice.bits));
    }
    if (choice.bytes <= 0 || choice.bytes > kMaxBytes) {
      return BadGroup(
          group, position,
          absl::StrCat("bytes at ", choice.bits, " bits must be positive, is ", choice.bytes));
    }
    if (previous && (choice.bits <= previous->bits || choice.bytes <= previous->bytes)) {
      return BadGroup(group, position,
                      absl::StrCat("choices must grow in bits and in bytes, but ", choice.bits,
                                   " bits (", choice.bytes, " bytes) follows ", previous->bits,
                                   " bits (", previous->bytes, " bytes)"));
    }
    if (!std::isfinite(choice.sensitivity) || choice.sensitivity < 0) {
      return BadGroup(
          group, position,
          absl::StrCat("sensitivity at ", choice.bits, " bits must be finite and not negative, is ",
                       choice.sensitivity));
    }
    if (!std::isfinite(choice.gradient_score)) {
      return BadGroup(group, position,
                      absl::StrCat("gradient_score at ", choice.bits, " bits must be finite"));
    }
    previous = &choice;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const SearchSpace& space) {
  if (space.groups.empty()) {
    return absl::InvalidArgumentError("The search space has no groups: there is nothing to search");
  }
  if (space.fixed_bytes < 0 || space.fixed_bytes > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "The search space's fixed_bytes must not be negative, is ", space.fixed_bytes));
  }
  if (!std::isfinite(space.base_quality) || space.base_quality < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("The search space's base_quality must be finite and not negative, is ",
                     space.base_quality));
  }
  for (size_t g = 0; g < space.groups.size(); ++g) {
    RETURN_IF_ERROR(ValidateGroup(space.groups[g], g));
  }
  return absl::OkStatus();
}

absl::Status Validate(const SearchSpace& space, const Assignment& assignment) {
  if (assignment.size() != space.groups.size()) {
    return absl::InvalidArgumentError(absl::StrCat("An assignment must name a choice for each of ",
                                                   space.groups.size(), " groups, has ",
                                                   assignment.size()));
  }
  for (size_t g = 0; g < assignment.size(); ++g) {
    const Group& group = space.groups[g];
    if (assignment[g] < 0 || assignment[g] >= static_cast<int>(group.choices.size())) {
      return BadGroup(group, g,
                      absl::StrCat("an assignment names choice ", assignment[g], ", there are ",
                                   group.choices.size()));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateBudget(const SearchSpace& space, int64_t budget_bytes) {
  const int64_t smallest = SmallestBytes(space);
  if (budget_bytes >= smallest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("The budget cannot be met: the smallest assignment needs ", smallest, " bytes (",
                   space.fixed_bytes, " of them for weights that are not searched), the budget is ",
                   budget_bytes));
}

int64_t TotalBytes(const SearchSpace& space, const Assignment& assignment) {
  int64_t total = space.fixed_bytes;
  for (size_t g = 0; g < assignment.size(); ++g) {
    total += space.groups[g].choices[assignment[g]].bytes;
  }
  return total;
}

int64_t SmallestBytes(const SearchSpace& space) {
  int64_t total = space.fixed_bytes;
  for (const Group& group : space.groups) total += group.choices.front().bytes;
  return total;
}

int64_t LargestBytes(const SearchSpace& space) {
  int64_t total = space.fixed_bytes;
  for (const Group& group : space.groups) total += group.choices.back().bytes;
  return total;
}

double AverageBits(const SearchSpace& space, const Assignment& assignment) {
  int64_t parameters = 0;
  for (const Group& group : space.groups) parameters += group.parameter_count;
  return 8.0 * static_cast<double>(TotalBytes(space, assignment) - space.fixed_bytes) /
         static_cast<double>(parameters);
}

int64_t BudgetForAverageBits(const SearchSpace& space, double average_bits) {
  int64_t parameters = 0;
  for (const Group& group : space.groups) parameters += group.parameter_count;
  return space.fixed_bytes +
         static_cast<int64_t>(std::floor(average_bits * static_cast<double>(parameters) / 8.0));
}

bool Feasible(const SearchSpace& space, const Assignment& assignment, int64_t budget_bytes) {
  return TotalBytes(space, assignment) <= budget_bytes;
}

double TotalSensitivity(const SearchSpace& space, const Assignment& assignment) {
  double total = 0;
  for (size_t g = 0; g < assignment.size(); ++g) {
    total += space.groups[g].choices[assignment[g]].sensitivity;
  }
  return total;
}

std::vector<UniformAssignment> UniformAssignments(const SearchSpace& space) {
  std::vector<UniformAssignment> result;
  for (const Choice& wanted : space.groups.front().choices) {
    UniformAssignment uniform{.bits = wanted.bits};
    for (const Group& group : space.groups) {
      for (size_t c = 0; c < group.choices.size(); ++c) {
        if (group.choices[c].bits == wanted.bits) uniform.assignment.push_back(static_cast<int>(c));
      }
    }
    if (uniform.assignment.size() == space.groups.size()) result.push_back(std::move(uniform));
  }
  return result;
}

}  // namespace qpruner::search
