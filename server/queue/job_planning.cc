#include "server/queue/job_planning.h"

#include <string>
#include <utility>

#include "base/status_macros.h"
#include "server/queue/search_view.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

using internal::v1::TaskRecord;

absl::StatusOr<JobView> LoadView(StoreReader& store, const JobName& name) {
  JobView view;
  ASSIGN_OR_RETURN(view.record, store.GetJob(name));
  if (IsSearching(view.record)) {
    ASSIGN_OR_RETURN(view.tasks.emplace_back(), store.GetTask(name, kPrepareTaskId));
  } else {
    ASSIGN_OR_RETURN(view.tasks, store.ListTasks(name));
  }
  ASSIGN_OR_RETURN(view.trials, store.ListTrials(name, 0, 0));
  return view;
}

absl::Duration Between(const google::protobuf::Timestamp& from, absl::Time to) {
  return to - FromTimestamp(from);
}

const TaskRecord* FindTask(const JobView& view, const char* id) {
  for (const TaskRecord& task : view.tasks) {
    if (task.task_id() == id) return &task;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::vector<FinishedStage>> ApplyPlan(StoreTransaction& store, JobChange& change,
                                                     const JobView& view, const JobPlan& plan,
                                                     absl::Time now) {
  std::vector<FinishedStage> stages;
  if (!plan.failure.ok()) {
    RETURN_IF_ERROR(FailJob(store, change, plan.failure, now));
    return stages;
  }
  internal::v1::JobRecord& record = change.record();
  if (plan.trial_count) {
    record.mutable_job()->mutable_progress()->set_trial_count(*plan.trial_count);
  }
  if (plan.stage) {
    if (*plan.stage == v1::CompressionJob::SEARCH) {
      stages.push_back({v1::CompressionJob::PREPARE, Between(record.job().start_time(), now)});
    } else if (const TaskRecord* prepare = FindTask(view, kPrepareTaskId)) {
      stages.push_back({v1::CompressionJob::SEARCH, Between(prepare->end_time(), now)});
    }
    RETURN_IF_ERROR(change.EnterStage(*plan.stage));
  }
  if (plan.chosen_trial_index) {
    record.set_chosen_trial_index(*plan.chosen_trial_index);
    ASSIGN_OR_RETURN(
        const v1::ParetoFront front,
        BuildFront(record.prepare(), record.job().spec(), view.trials, *plan.chosen_trial_index));
    RETURN_IF_ERROR(change.ChangeFront(front));
  }
  for (const v1::Trial& trial : plan.trials) RETURN_IF_ERROR(change.PutTrial(trial));
  for (const PlannedTask& task : plan.tasks) RETURN_IF_ERROR(QueueTask(store, change, task, now));
  if (plan.report) {
    *record.mutable_job()->mutable_report() = *plan.report;
    if (const TaskRecord* finalize = FindTask(view, kFinalizeTaskId)) {
      stages.push_back({v1::CompressionJob::FINALIZE, Between(finalize->create_time(), now)});
    }
    RETURN_IF_ERROR(change.AdvanceProgress(1, "done"));
    RETURN_IF_ERROR(change.EnterState(v1::CompressionJob::SUCCEEDED, nullptr));
  }
  return stages;
}

void JobPlanning::TakeUpBacklog() {
  std::vector<JobName> left;
  const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(left, reader.UnplannedJobs());
    return absl::OkStatus();
  });
  if (!status.ok()) {
    spdlog::error("what was left is not known, will be asked again: {}", status.ToString());
    return;
  }
  backlog_known_ = true;
  for (const JobName& name : left) backlog_.push_back(name.ToString());
}

std::optional<std::string> JobPlanning::TakeNext() {
  if (std::optional<std::string> job = work_.TakeDirtyJob()) return job;
  if (!backlog_known_) TakeUpBacklog();
  if (backlog_.empty()) return std::nullopt;
  std::string job = std::move(backlog_.front());
  backlog_.pop_front();
  return job;
}

bool JobPlanning::PlanNext() {
  const std::optional<std::string> name = TakeNext();
  if (!name) return false;
  const absl::StatusOr<JobName> job = JobName::Parse(*name);
  if (!job.ok()) return true;
  const absl::Status planned = Plan(*job);
  if (absl::IsDataLoss(planned)) {
    // It does not mend itself: looked at again when the job changes, or by the next server. The
    // store has told which row it is; this may come every few seconds.
    spdlog::debug("{}: planning failed: {}", *name, planned.ToString());
  } else if (!planned.ok()) {
    spdlog::error("{}: planning failed, will be tried again: {}", *name, planned.ToString());
    failed_.push_back(*name);
  }
  return true;
}

void JobPlanning::RetryFailed() {
  for (const std::string& job : failed_) work_.PutBack(job);
  failed_.clear();
}

absl::Status JobPlanning::Plan(const JobName& name) {
  absl::StatusOr<JobView> view = absl::UnknownError("not read");
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    view = LoadView(reader, name);
    return absl::IsNotFound(view.status()) ? absl::OkStatus() : view.status();
  }));
  if (!view.ok()) return absl::OkStatus();  // Deleted.
  // Outside of the transaction: the search may take its time.
  const JobPlan plan = NextTasks(*view, proposer_);
  if (plan.empty()) return absl::OkStatus();

  const v1::CompressionJob& seen = view->record.job();
  bool outdated = false;
  std::vector<FinishedStage> stages;
  const absl::Status status =
      changes_.Run(name,
                   [&](StoreTransaction& store, JobChange& change, absl::Time now,
                       CommitEffects& effects) -> absl::Status {
                     outdated = false;
                     stages.clear();
                     // Trials that finished meanwhile do not touch the proposals. What can have
                     // come between is that the job was cancelled or has failed, or that another
                     // server has planned this step.
                     internal::v1::JobRecord& record = change.record();
                     outdated = change.job().state() != seen.state() ||
                                record.plan_count() != view->record.plan_count();
                     if (outdated) return absl::OkStatus();
                     record.set_plan_count(record.plan_count() + 1);
                     ASSIGN_OR_RETURN(stages, ApplyPlan(store, change, *view, plan, now));
                     // A step that follows from this one comes with what ends first.
                     effects.changed = effects.planned = true;
                     return absl::OkStatus();
                   });
  if (absl::IsNotFound(status)) return absl::OkStatus();
  RETURN_IF_ERROR(status);
  if (outdated) work_.MarkDirty(name.ToString());
  for (const FinishedStage& stage : stages) observer_.OnStageFinished(stage.stage, stage.duration);
  return absl::OkStatus();
}

}  // namespace qpruner::server
