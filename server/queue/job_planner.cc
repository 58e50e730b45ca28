#include "server/queue/job_planner.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "proto/status_codec.h"
#include "search/selection.h"
#include "server/queue/job_states.h"
#include "server/queue/search_view.h"

namespace qpruner::server {
namespace {

using internal::v1::FinalizeResult;
using internal::v1::JobRecord;
using internal::v1::PrepareResult;
using internal::v1::TaskRecord;
using internal::v1::TaskSpec;

// Shares of a job's whole work, as measured on the shipped model. Only progress bars depend on
// them.
constexpr double kPrepareShare = 0.25;
constexpr double kSearchShare = 0.45;
constexpr double kFinalizeShare = 0.30;

bool HasTask(const JobView& view, const std::string& id) {
  return std::any_of(view.tasks.begin(), view.tasks.end(),
                     [&](const TaskRecord& task) { return task.task_id() == id; });
}

TaskSpec NewTaskSpec(const JobRecord& record) {
  TaskSpec spec;
  *spec.mutable_spec() = record.job().spec();
  *spec.mutable_inputs() = record.prepared();
  // A branch may have moved on since: every task reads what the first one read.
  if (const std::string& uri = record.prepare().resolved_model_uri(); !uri.empty()) {
    spec.mutable_spec()->mutable_model()->set_uri(uri);
  }
  return spec;
}

// Trials 1 to the result are all finished.
size_t FinishedPrefix(const std::vector<v1::Trial>& trials) {
  size_t count = 0;
  while (count < trials.size() && IsFinal(trials[count].state())) ++count;
  return count;
}

int CountMeasured(const std::vector<v1::Trial>& trials) {
  return static_cast<int>(std::count_if(trials.begin(), trials.end(), [](const v1::Trial& trial) {
    return trial.state() == v1::Trial::SUCCEEDED;
  }));
}

bool IsUniform(const v1::Trial& trial) { return absl::StartsWith(trial.origin(), "uniform-"); }

v1::JobReport BuildReport(const JobView& view, int64_t budget_bytes) {
  const PrepareResult& prepare = view.record.prepare();
  const FinalizeResult& finalize = view.record.finalize();
  v1::JobReport report;
  auto add_row = [&](const std::string& label, const v1::ModelMetrics& metrics,
                     const std::string& trial) {
    v1::JobReport::Row& row = *report.add_rows();
    row.set_label(label);
    *row.mutable_metrics() = metrics;
    row.set_trial(trial);
    return &row;
  };
  add_row("original", prepare.original_test(), "");
  const v1::Pruning& pruning = view.record.job().spec().pruning();
  if (pruning.ratio() > 0 || pruning.has_parameter_ratio()) {
    add_row("pruned", prepare.pruned_test(), "");
  }
  for (const v1::Trial& trial : view.trials) {
    if (IsUniform(trial) && trial.state() == v1::Trial::SUCCEEDED && trial.has_test_metrics()) {
      add_row(trial.origin(), trial.test_metrics(), trial.name());
    }
  }
  const v1::Trial& chosen = view.trials[view.record.chosen_trial_index() - 1];
  add_row("chosen", finalize.chosen_test(), chosen.name());
  if (finalize.has_base_test()) add_row("base", finalize.base_test(), chosen.name());
  if (finalize.has_fine_tuned_test()) {
    add_row("fine-tuned", finalize.fine_tuned_test(), chosen.name())
        ->set_adapter_bytes(finalize.adapter_bytes());
  }
  if (finalize.has_gguf_test()) add_row("gguf", finalize.gguf_test(), chosen.name());
  report.set_chosen_trial(chosen.name());
  report.set_budget_bytes(budget_bytes);
  if (const std::string& uri = prepare.resolved_model_uri();
      !uri.empty() && uri != view.record.job().spec().model().uri()) {
    report.add_notes(absl::StrCat("The model was read as ", uri));
  }
  report.mutable_notes()->MergeFrom(prepare.notes());
  report.mutable_notes()->MergeFrom(finalize.notes());
  if (view.record.search_ended()) {
    report.add_notes(absl::StrCat("limits.max_search_seconds ended the search after ",
                                  CountMeasured(view.trials), " measured trials of ",
                                  view.record.job().spec().search().max_trials()));
  }
  for (const TaskRecord& task : view.tasks) {
    const int micro_batch = task.spec().spec().fine_tune().micro_batch_size();
    const int asked = view.record.job().spec().fine_tune().micro_batch_size();
    if (task.task_id() == kFinalizeTaskId && micro_batch != asked) {
      report.add_notes(absl::StrCat("Fine-tuned with micro_batch_size ", micro_batch,
                                    " instead of ", asked, ": the device's memory was not enough"));
    }
  }
  *report.mutable_fine_tune_curve() = finalize.curve();
  for (const TaskRecord& task : view.tasks) {
    if (task.has_use()) *report.add_task_uses() = task.use();
  }
  return report;
}

// The stage between PREPARE's result and the choice of a trial.
JobPlan PlanSearch(const JobView& view, const TrialProposer& proposer) {
  JobPlan plan;
  const JobRecord& record = view.record;
  const v1::Search& asked = record.job().spec().search();
  const search::SearchSpace space = ToSearchSpace(record.prepare(), asked.quality_metric());
  const int64_t budget = BudgetBytes(asked, space);

  // Known as soon as the bytes are: no trial is spent on it.
  if (search::SmallestBytes(space) > budget) {
    plan.failure = WithErrorInfo(
        absl::FailedPreconditionError(absl::StrCat(
            "No assignment meets the budget: the smallest one stores ",
            search::SmallestBytes(space), " bytes of weights, ", space.fixed_bytes,
            " of them outside of the searched layers; the budget is ", budget,
            " bytes. Raise search.max_bytes or search.max_average_bits, prune more, or allow fewer "
            "bits")),
        "BUDGET_TOO_SMALL",
        {{"minimum_bytes", absl::StrCat(search::SmallestBytes(space))},
         {"budget_bytes", absl::StrCat(budget)}});
    return plan;
  }

  if (record.job().stage() != v1::CompressionJob::SEARCH) plan.stage = v1::CompressionJob::SEARCH;
  const absl::StatusOr<JobName> name = JobName::Parse(record.job().name());
  const size_t finished = FinishedPrefix(view.trials);
  const size_t wanted =
      record.search_ended() ? view.trials.size() : static_cast<size_t>(asked.max_trials());
  std::vector<v1::Trial> trials = view.trials;
  bool exhausted = false;
  while (trials.size() < wanted && !exhausted) {
    const size_t index = trials.size() + 1;
    const size_t visible =
        index > static_cast<size_t>(asked.parallelism()) ? index - asked.parallelism() : 0;
    if (finished < visible) break;
    absl::StatusOr<std::vector<search::Trial>> history =
        ToSearchTrials(space, trials, visible, asked.quality_metric());
    if (!history.ok()) {
      plan.failure = history.status();
      return plan;
    }
    absl::StatusOr<std::optional<TrialProposal>> proposal =
        proposer.Propose(asked, space, budget, *history);
    if (!proposal.ok()) {
      plan.failure = WithErrorInfo(
          absl::Status(proposal.status().code(),
                       absl::StrCat("The search cannot go on: ", proposal.status().message())),
          "SEARCH_FAILED");
      return plan;
    }
    if (!*proposal) {
      exhausted = true;
      break;
    }
    v1::Trial trial;
    trial.set_name(name->TrialName(static_cast<int>(index)));
    trial.set_index(static_cast<int>(index));
    trial.set_state(v1::Trial::QUEUED);
    trial.set_origin((*proposal)->origin);
    for (v1::GroupPrecision& precision : ToPrecisions(space, (*proposal)->assignment)) {
      *trial.add_precisions() = std::move(precision);
    }
    PlannedTask task{TrialTaskId(trial.index()), NewTaskSpec(record)};
    internal::v1::TrialTask& work = *task.spec.mutable_trial();
    work.set_index(trial.index());
    *work.mutable_precisions() = trial.precisions();
    work.set_measure_on_test(IsUniform(trial));
    plan.tasks.push_back(std::move(task));
    plan.trials.push_back(trial);
    trials.push_back(std::move(trial));
  }

  const int trial_count = static_cast<int>(exhausted ? trials.size() : wanted);
  if (record.job().progress().trial_count() != trial_count) plan.trial_count = trial_count;
  if (finished < trials.size() || !(exhausted || trials.size() == wanted)) return plan;

  // Every trial is finished and no other is wanted.
  absl::StatusOr<std::vector<search::Trial>> history =
      ToSearchTrials(space, trials, trials.size(), asked.quality_metric());
  absl::StatusOr<size_t> chosen = history.ok() ? search::ChooseTrial(*history, budget)
                                               : absl::StatusOr<size_t>(history.status());
  if (!chosen.ok()) {
    plan.failure = WithErrorInfo(
        absl::FailedPreconditionError(absl::StrCat("No trial can be chosen within the budget of ",
                                                   budget, " bytes: ", chosen.status().message())),
        "NO_TRIAL_WITHIN_BUDGET", {{"budget_bytes", absl::StrCat(budget)}});
    return plan;
  }
  const v1::Trial& trial = trials[*chosen];
  plan.chosen_trial_index = trial.index();
  plan.stage = v1::CompressionJob::FINALIZE;
  PlannedTask task{kFinalizeTaskId, NewTaskSpec(record)};
  if (record.job().spec().fine_tune().has_distillation()) {
    task.spec.mutable_inputs()->MergeFrom(record.source_files());
  }
  internal::v1::FinalizeTask& work = *task.spec.mutable_finalize();
  work.set_trial_index(trial.index());
  *work.mutable_precisions() = trial.precisions();
  plan.tasks.push_back(std::move(task));
  return plan;
}

}  // namespace

std::string TrialTaskId(int index) { return absl::StrCat("trial-", index); }

bool IsSearching(const JobRecord& record) {
  return record.has_prepare() && record.chosen_trial_index() == 0;
}

JobPlan NextTasks(const JobView& view, const TrialProposer& proposer) {
  JobPlan plan;
  const JobRecord& record = view.record;
  const v1::CompressionJob::State state = record.job().state();
  if (state != v1::CompressionJob::PENDING && state != v1::CompressionJob::RUNNING) return plan;
  if (!HasTask(view, kPrepareTaskId)) {
    PlannedTask task{kPrepareTaskId, NewTaskSpec(record)};
    task.spec.mutable_prepare();
    task.spec.mutable_inputs()->MergeFrom(record.source_files());
    plan.tasks.push_back(std::move(task));
    return plan;
  }
  if (!record.has_prepare()) return plan;
  if (IsSearching(record)) return PlanSearch(view, proposer);
  if (record.has_finalize()) {
    plan.report = BuildReport(
        view, BudgetBytes(
                  record.job().spec().search(),
                  ToSearchSpace(record.prepare(), record.job().spec().search().quality_metric())));
  }
  return plan;
}

double JobFraction(v1::CompressionJob::Stage stage, int completed_trials, int trial_count,
                   double running) {
  switch (stage) {
    case v1::CompressionJob::PREPARE:
      return kPrepareShare * std::clamp(running, 0.0, 1.0);
    case v1::CompressionJob::SEARCH:
      if (trial_count == 0) return kPrepareShare;
      return kPrepareShare +
             kSearchShare * std::clamp((completed_trials + running) / trial_count, 0.0, 1.0);
    case v1::CompressionJob::FINALIZE:
      return kPrepareShare + kSearchShare + kFinalizeShare * std::clamp(running, 0.0, 1.0);
    default:
      return 0;
  }
}

}  // namespace qpruner::server
