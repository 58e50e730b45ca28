#include "server/queue/search_view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "search/pareto.h"
#include "server/queue/job_states.h"

namespace qpruner::server {

using internal::v1::PrepareResult;

namespace {

// "@" and more than the names of branches and hashes of commits have.
constexpr size_t kMaxRevisionBytes = 257;

}  // namespace

double Quality(const v1::ModelMetrics& metrics, v1::Search::QualityMetric metric) {
  return metric == v1::Search::PERPLEXITY ? metrics.perplexity() : metrics.kl_divergence();
}

search::SearchSpace ToSearchSpace(const PrepareResult& prepare, v1::Search::QualityMetric metric) {
  search::SearchSpace space;
  space.fixed_bytes = prepare.fixed_bytes();
  space.base_quality = Quality(prepare.pruned_selection(), metric);
  space.groups.reserve(prepare.groups_size());
  for (const internal::v1::SearchGroup& group : prepare.groups()) {
    search::Group& to = space.groups.emplace_back();
    to.name = group.name();
    to.parameter_count = group.parameter_count();
    to.mutual_information = group.mutual_information();
    to.mutual_information_control = group.mutual_information_control();
    for (const internal::v1::FormatChoice& choice : group.choices()) {
      to.choices.push_back({.bits = choice.bits(),
                            .bytes = choice.bytes(),
                            .sensitivity = choice.sensitivity(),
                            .gradient_score = choice.gradient_score()});
    }
  }
  return space;
}

absl::Status CheckPrepareResult(const PrepareResult& prepare, const v1::CompressionSpec& spec) {
  // What was asked for, at most with its revision pinned down.
  const std::string& read = prepare.resolved_model_uri();
  const std::string& asked = spec.model().uri();
  const bool same_model = read.substr(0, read.find('@')) == asked.substr(0, asked.find('@'));
  if (!read.empty() && (!same_model || read.size() > asked.size() + kMaxRevisionBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Another model was read than was asked for: ", CutUtf8(read, 200)));
  }
  const auto& candidates = spec.search().candidate_bits();
  for (const internal::v1::SearchGroup& group : prepare.groups()) {
    const bool same = std::equal(
        group.choices().begin(), group.choices().end(), candidates.begin(), candidates.end(),
        [](const internal::v1::FormatChoice& choice, int bits) { return choice.bits() == bits; });
    if (!same) {
      return absl::InvalidArgumentError(absl::StrCat("Group ", group.name(),
                                                     " does not offer exactly the candidate bits ",
                                                     absl::StrJoin(candidates, ", ")));
    }
  }
  return search::Validate(ToSearchSpace(prepare, spec.search().quality_metric()));
}

int64_t BudgetBytes(const v1::Search& search, const search::SearchSpace& space) {
  return search.budget_case() == v1::Search::kMaxBytes
             ? search.max_bytes()
             : search::BudgetForAverageBits(space, search.max_average_bits());
}

std::vector<v1::GroupPrecision> ToPrecisions(const search::SearchSpace& space,
                                             const search::Assignment& assignment) {
  std::vector<v1::GroupPrecision> precisions(space.groups.size());
  for (size_t i = 0; i < space.groups.size(); ++i) {
    precisions[i].set_group(space.groups[i].name);
    precisions[i].set_bits(space.groups[i].choices[assignment[i]].bits);
  }
  return precisions;
}

absl::StatusOr<search::Assignment> ToAssignment(
    const search::SearchSpace& space,
    const google::protobuf::RepeatedPtrField<v1::GroupPrecision>& precisions) {
  search::Assignment assignment;
  if (precisions.size() != static_cast<int>(space.groups.size())) {
    return absl::InvalidArgumentError(absl::StrCat("An assignment needs ", space.groups.size(),
                                                   " groups, has ", precisions.size()));
  }
  for (size_t i = 0; i < space.groups.size(); ++i) {
    const search::Group& group = space.groups[i];
    const v1::GroupPrecision& precision = precisions[static_cast<int>(i)];
    const auto choice =
        std::find_if(group.choices.begin(), group.choices.end(),
                     [&](const search::Choice& choice) { return choice.bits == precision.bits(); });
    if (precision.group() != group.name || choice == group.choices.end()) {
      return absl::InvalidArgumentError(absl::StrCat("Not a precision of group ", group.name, ": ",
                                                     precision.group(), " at ", precision.bits(),
                                                     " bits"));
    }
    assignment.push_back(static_cast<int>(choice - group.choices.begin()));
  }
  return assignment;
}

absl::StatusOr<std::vector<search::Trial>> ToSearchTrials(const search::SearchSpace& space,
                                                          absl::Span<const v1::Trial> trials,
                                                          size_t visible_count,
                                                          v1::Search::QualityMetric metric) {
  std::vector<search::Trial> result;
  for (size_t i = 0; i < trials.size(); ++i) {
    search::Trial& trial = result.emplace_back();
    trial.index = trials[i].index();
    ASSIGN_OR_RETURN(trial.assignment, ToAssignment(space, trials[i].precisions()));
    trial.bytes = search::TotalBytes(space, trial.assignment);
    if (i >= visible_count || !IsFinal(trials[i].state())) continue;
    if (trials[i].state() == v1::Trial::SUCCEEDED) {
      trial.state = search::TrialState::MEASURED;
      trial.quality = Quality(trials[i].metrics(), metric);
    } else {
      trial.state = search::TrialState::INFEASIBLE;
    }
  }
  return result;
}

absl::StatusOr<v1::ParetoFront> BuildFront(const PrepareResult& prepare,
                                           const v1::CompressionSpec& spec,
                                           absl::Span<const v1::Trial> trials, int chosen_index) {
  const v1::Search::QualityMetric metric = spec.search().quality_metric();
  const search::SearchSpace space = ToSearchSpace(prepare, metric);
  const int64_t budget = BudgetBytes(spec.search(), space);
  ASSIGN_OR_RETURN(const std::vector<search::Trial> view,
                   ToSearchTrials(space, trials, trials.size(), metric));
  v1::ParetoFront front;
  front.set_quality_metric(metric);
  for (size_t position : search::ParetoFront(view)) {
    const v1::Trial& trial = trials[position];
    v1::ParetoPoint& point = *front.add_points();
    point.set_trial(trial.name());
    point.set_weight_bytes(view[position].bytes);
    point.set_average_bits(search::AverageBits(space, view[position].assignment));
    point.set_quality(view[position].quality);
    point.set_within_budget(view[position].bytes <= budget);
    point.set_chosen(trial.index() == chosen_index);
    point.set_origin(trial.origin());
  }
  return front;
}

}  // namespace qpruner::server
