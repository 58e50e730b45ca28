#include "server/queue/task_transitions.h"

#include <algorithm>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "proto/status_codec.h"
#include "server/queue/job_limits.h"
#include "server/queue/job_pausing.h"
#include "server/queue/job_states.h"
#include "server/queue/search_view.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {
namespace {

using internal::v1::TaskRecord;
using internal::v1::TaskResult;
using internal::v1::TaskSpec;

// After a store was mended, its jobs go on that much later at most.
constexpr absl::Duration kSetAsideFor = absl::Minutes(10);

// An engine of ours has some ten, of a line or two.
constexpr int kMaxNotes = 32;
constexpr size_t kMaxNoteBytes = 512;

absl::Status TaskWithoutTrial(const TaskRecord& task) {
  return absl::InternalError(absl::StrCat("Task without its trial: ", task.task_id()));
}

// The trial that a task measures; nothing for other tasks.
absl::StatusOr<std::optional<v1::Trial>> FindTrial(StoreTransaction& store, const JobName& job,
                                                   const TaskRecord& task) {
  if (!task.spec().has_trial()) return std::nullopt;
  const int index = task.spec().trial().index();
  ASSIGN_OR_RETURN(std::vector<v1::Trial> found, store.ListTrials(job, index - 1, 1));
  if (found.size() != 1 || found[0].index() != index) return TaskWithoutTrial(task);
  return std::optional<v1::Trial>(std::move(found[0]));
}

absl::Status MoveTrial(StoreTransaction& store, JobChange& change, const TaskRecord& task,
                       v1::Trial::State state, absl::Time now) {
  ASSIGN_OR_RETURN(std::optional<v1::Trial> trial, FindTrial(store, change.name(), task));
  if (!trial) return absl::OkStatus();
  trial->set_state(state);
  if (IsFinal(state)) *trial->mutable_end_time() = ToTimestamp(now);
  return change.PutTrial(*trial);
}

absl::Status CloseTask(StoreTransaction& store, JobChange& change, TaskRecord& task,
                       TaskRecord::State state, v1::Trial::State trial_state, absl::Time now) {
  if (task.state() == TaskRecord::LEASED) CountLeases(change.record(), -1, change.limits_now());
  task.set_state(state);
  *task.mutable_end_time() = ToTimestamp(now);
  RETURN_IF_ERROR(store.PutTask(task));
  return MoveTrial(store, change, task, trial_state, now);
}

int CompletedTrials(const std::vector<v1::Trial>& trials) {
  return static_cast<int>(std::count_if(
      trials.begin(), trials.end(), [](const v1::Trial& trial) { return IsFinal(trial.state()); }));
}

// What the job shows about all of its trials once one more of them is finished. `trials`: all.
absl::Status CountTrial(JobChange& change, const std::vector<v1::Trial>& trials, double running) {
  v1::Progress& progress = *change.record().mutable_job()->mutable_progress();
  progress.set_completed_trial_count(CompletedTrials(trials));
  return change.AdvanceProgress(
      JobFraction(v1::CompressionJob::SEARCH, progress.completed_trial_count(),
                  progress.trial_count(), running),
      absl::StrCat(progress.completed_trial_count(), " of ", progress.trial_count(),
                   " trials done"));
}

// Tells of the front if the trial `measured`, which was not on it before, is on it now.
absl::Status ShowFront(JobChange& change, const std::vector<v1::Trial>& trials,
                       const std::string& measured) {
  ASSIGN_OR_RETURN(const v1::ParetoFront front,
                   BuildFront(change.record().prepare(), change.job().spec(), trials, 0));
  const bool on_it =
      std::any_of(front.points().begin(), front.points().end(),
                  [&](const v1::ParetoPoint& point) { return point.trial() == measured; });
  return on_it ? change.ChangeFront(front) : absl::OkStatus();
}

// The result of a trial. All trials are read once: there may be a thousand, and each comes here.
absl::Status StoreTrial(StoreTransaction& store, JobChange& change, const TaskRecord& task,
                        const internal::v1::TrialResult& result, double running, absl::Time now) {
  ASSIGN_OR_RETURN(std::vector<v1::Trial> trials, store.ListTrials(change.name(), 0, 0));
  const auto trial = std::find_if(trials.begin(), trials.end(), [&](const v1::Trial& other) {
    return other.index() == task.spec().trial().index();
  });
  if (trial == trials.end()) return TaskWithoutTrial(task);
  trial->set_state(v1::Trial::SUCCEEDED);
  *trial->mutable_metrics() = result.selection();
  if (result.has_test()) *trial->mutable_test_metrics() = result.test();
  *trial->mutable_end_time() = ToTimestamp(now);
  RETURN_IF_ERROR(change.PutTrial(*trial));
  const std::string measured = trial->name();
  const internal::v1::JobRecord& record = change.record();
  if (record.search_time_over() && !record.search_ended()) {
    // It may cancel others.
    RETURN_IF_ERROR(EndSearch(store, change, now));
    ASSIGN_OR_RETURN(trials, store.ListTrials(change.name(), 0, 0));
  }
  RETURN_IF_ERROR(ShowFront(change, trials, measured));
  return CountTrial(change, trials, running);
}

absl::Status CheckResult(const JobChange& change, const TaskRecord& task,
                         const TaskResult& result) {
  switch (task.spec().work_case()) {
    case TaskSpec::kPrepare:
      if (!result.has_prepare()) break;
      return CheckPrepareResult(result.prepare(), change.job().spec());
    case TaskSpec::kTrial:
      if (!result.has_trial()) break;
      if (!result.trial().has_selection()) {
        return absl::InvalidArgumentError("A trial's result needs metrics of the selection share");
      }
      return absl::OkStatus();
    case TaskSpec::kFinalize:
      if (!result.has_finalize()) break;
      return absl::OkStatus();
    case TaskSpec::WORK_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(absl::StrCat("The result is not one of task ", task.task_id()));
}

// The error as the job shows it: which task, then what it said.
absl::Status DescribeFailure(const TaskRecord& task, int max_attempts, const absl::Status& error) {
  const std::string which =
      ClassOf(error.code()) == ErrorClass::kBadInput
          ? absl::StrCat("Task ", task.task_id(), " failed: ")
          : absl::StrCat("Task ", task.task_id(), " gave up after ", CountedAttempts(task), " of ",
                         max_attempts, " attempts: ");
  absl::Status described(error.code(), absl::StrCat(which, error.message()));
  // A reason that only repeats the code says less than the one added below.
  const bool generic = ErrorReason(error) == absl::StatusCodeToString(error.code());
  error.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    if (!(generic && absl::EndsWith(url, "google.rpc.ErrorInfo")))
      described.SetPayload(url, payload);
  });
  return WithErrorInfo(
      described,
      ClassOf(error.code()) == ErrorClass::kBadInput ? "TASK_FAILED" : "TOO_MANY_ATTEMPTS",
      {{"task", task.task_id()}, {"attempts", absl::StrCat(CountedAttempts(task))}});
}

// Fine-tuning in smaller pieces needs less memory and gives the same result but for rounding.
// False: they are as small as can be, or the task does not fine-tune.
bool HalveMicroBatch(TaskRecord& task) {
  if (!task.spec().has_finalize()) return false;
  v1::FineTune& tune = *task.mutable_spec()->mutable_spec()->mutable_fine_tune();
  if (tune.steps() == 0 || tune.micro_batch_size() <= 1) return false;
  tune.set_micro_batch_size(tune.micro_batch_size() / 2);
  return true;
}

// The engine then streams weights that it kept, or takes smaller batches; where not even that fits,
// it says what would. Without a limit it plans for at least half of the device: a quarter is less.
// False: that would be less than a job may ask for, nobody knows what the device has, or the task
// is not PREPARE.
bool HalveDeviceMemory(TaskRecord& task, int64_t device_memory_bytes) {
  if (!task.spec().has_prepare()) return false;
  v1::Limits& limits = *task.mutable_spec()->mutable_spec()->mutable_limits();
  const int64_t half =
      limits.has_device_memory_bytes() ? limits.device_memory_bytes() / 2 : device_memory_bytes / 4;
  if (half < kLeastDeviceMemoryBytes) return false;
  limits.set_device_memory_bytes(half);
  return true;
}

// What a worker has to say of its work: every change of the job writes it, and lists of jobs bring
// it.
void CutNotes(google::protobuf::RepeatedPtrField<std::string>& notes) {
  for (std::string& note : notes) note.resize(CutUtf8(note, kMaxNoteBytes).size());
  if (notes.size() <= kMaxNotes) return;
  const int left_out = notes.size() - kMaxNotes;
  notes.DeleteSubrange(kMaxNotes, left_out);
  *notes.Add() = absl::StrCat(left_out, " notes of the worker left out");
}

// CompleteTask, with a result that was checked.
absl::Status StoreResult(StoreTransaction& store, JobChange& change, TaskRecord& task,
                         const TaskResult& result, double running, absl::Time now) {
  for (const internal::v1::ArtifactRef& output : result.outputs()) {
    RETURN_IF_ERROR(change.PutArtifact(output));
  }
  CountLeases(change.record(), -1, change.limits_now());
  task.set_state(TaskRecord::SUCCEEDED);
  task.set_fraction(1);
  task.clear_error();
  *task.mutable_use() = result.use();
  task.mutable_use()->set_task(task.task_id());
  *task.mutable_end_time() = ToTimestamp(now);
  RETURN_IF_ERROR(store.PutTask(task));
  internal::v1::JobRecord& record = change.record();
  switch (result.result_case()) {
    case TaskResult::kPrepare:
      *record.mutable_prepare() = result.prepare();
      CutNotes(*record.mutable_prepare()->mutable_notes());
      *record.mutable_prepared() = result.outputs();
      return change.AdvanceProgress(JobFraction(v1::CompressionJob::PREPARE, 0, 0, 1),
                                    "model prepared");
    case TaskResult::kTrial:
      return StoreTrial(store, change, task, result.trial(), running, now);
    case TaskResult::kFinalize:
      *record.mutable_finalize() = result.finalize();
      CutNotes(*record.mutable_finalize()->mutable_notes());
      return absl::OkStatus();
    case TaskResult::RESULT_NOT_SET:
      break;
  }
  return absl::OkStatus();
}

absl::Status FinishCancel(StoreTransaction& store, JobChange& change) {
  ASSIGN_OR_RETURN(const std::vector<TaskRecord> tasks, store.ListTasks(change.name()));
  const bool any_leased = std::any_of(tasks.begin(), tasks.end(), [](const TaskRecord& task) {
    return task.state() == TaskRecord::LEASED;
  });
  return any_leased ? absl::OkStatus() : change.EnterState(v1::CompressionJob::CANCELLED, nullptr);
}

}  // namespace

absl::Status LeaseSuperseded() {
  return WithErrorInfo(
      absl::AbortedError("Lease superseded: the task was given to another attempt or is over"),
      "LEASE_SUPERSEDED");
}

bool IsCurrentLease(const TaskRecord& task, const internal::v1::Lease& lease) {
  return task.state() == TaskRecord::LEASED && !lease.token().empty() &&
         task.lease_token() == lease.token() && task.attempt() == lease.attempt();
}

int CountedAttempts(const TaskRecord& task) { return task.attempt() - task.returned_count(); }

ErrorClass ClassOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kDataLoss:
      return ErrorClass::kBadInput;
    case absl::StatusCode::kResourceExhausted:
      return ErrorClass::kDeviceMemory;
    default:
      return ErrorClass::kInfrastructure;
  }
}

absl::Status QueueTask(StoreTransaction& store, const JobChange& change, const PlannedTask& planned,
                       absl::Time now) {
  TaskRecord task;
  task.set_job(change.job().name());
  task.set_task_id(planned.task_id);
  task.set_state(TaskRecord::QUEUED);
  *task.mutable_spec() = planned.spec;
  task.set_priority(change.job().priority());
  // No not_before: it is due whatever a clock that jumped, or another server's, says.
  *task.mutable_create_time() = ToTimestamp(now);
  return store.PutTask(task);
}

absl::Status LeaseTask(StoreTransaction& store, JobChange& change, TaskRecord& task,
                       const NewLease& lease, absl::Time now) {
  if (change.job().state() == v1::CompressionJob::PENDING) {
    RETURN_IF_ERROR(change.EnterState(v1::CompressionJob::RUNNING, nullptr));
  }
  CountLeases(change.record(), 1, change.limits_now());
  task.set_state(TaskRecord::LEASED);
  task.set_attempt(task.attempt() + 1);
  task.set_lease_token(lease.token);
  task.set_worker(lease.worker);
  task.set_incarnation(lease.incarnation);
  *task.mutable_lease_expire_time() = ToTimestamp(lease.expire_time);
  *task.mutable_start_time() = ToTimestamp(now);
  task.clear_end_time();
  task.set_fraction(0);
  RETURN_IF_ERROR(store.PutTask(task));
  ASSIGN_OR_RETURN(std::optional<v1::Trial> trial, FindTrial(store, change.name(), task));
  if (!trial) return absl::OkStatus();
  trial->set_state(v1::Trial::RUNNING);
  trial->set_worker(lease.worker);
  trial->set_attempt_count(task.attempt());
  *trial->mutable_start_time() = ToTimestamp(now);
  return change.PutTrial(*trial);
}

absl::Status SetAside(StoreTransaction& store, TaskRecord task, absl::Time now) {
  task.set_state(TaskRecord::QUEUED);
  task.clear_lease_token();
  task.set_fraction(0);
  *task.mutable_not_before() = ToTimestamp(now + kSetAsideFor);
  return store.PutTask(task);
}

absl::StatusOr<TaskFate> EndLease(StoreTransaction& store, JobChange& change, TaskRecord& task,
                                  const LeaseEnd& end, absl::Time now) {
  if (end.revoked) task.clear_lease_token();
  const bool pausing = change.job().state() == v1::CompressionJob::PAUSING;
  if (end.returned) task.set_returned_count(task.returned_count() + 1);
  // A worker that gives back for a pause does as it was told.
  if (!pausing) task.set_returns_in_row(end.returned ? task.returns_in_row() + 1 : 0);
  *task.mutable_error() = ToRpcStatus(end.error);
  if (change.job().state() == v1::CompressionJob::CANCELLING) {
    RETURN_IF_ERROR(
        CloseTask(store, change, task, TaskRecord::CANCELLED, v1::Trial::CANCELLED, now));
    RETURN_IF_ERROR(FinishCancel(store, change));
    return TaskFate::kCancelled;
  }
  const ErrorClass error_class = ClassOf(end.error.code());
  const bool out_of_memory = !end.returned && error_class == ErrorClass::kDeviceMemory;
  if (out_of_memory && task.spec().has_trial()) {
    // The device's memory is not enough for this assignment: that is the measurement.
    RETURN_IF_ERROR(
        CloseTask(store, change, task, TaskRecord::SUCCEEDED, v1::Trial::INFEASIBLE, now));
    ASSIGN_OR_RETURN(const std::vector<v1::Trial> trials, store.ListTrials(change.name(), 0, 0));
    RETURN_IF_ERROR(CountTrial(change, trials, 0));
    RETURN_IF_ERROR(FinishPause(store, change));
    return TaskFate::kInfeasible;
  }
  const int max_attempts = change.job().spec().limits().max_attempts();
  std::string less;
  if (out_of_memory && HalveMicroBatch(task)) {
    less = absl::StrCat("fine_tune.micro_batch_size ",
                        task.spec().spec().fine_tune().micro_batch_size());
  } else if (out_of_memory && HalveDeviceMemory(task, end.device_memory_bytes)) {
    less = absl::StrCat("limits.device_memory_bytes ",
                        task.spec().spec().limits().device_memory_bytes());
  }
  const bool smaller = !less.empty();
  if (smaller) task.set_returned_count(task.returned_count() + 1);
  const bool given_up =
      error_class == ErrorClass::kBadInput || CountedAttempts(task) >= max_attempts;
  if (!end.returned && !smaller && given_up) {
    RETURN_IF_ERROR(CloseTask(store, change, task, TaskRecord::FAILED, v1::Trial::FAILED, now));
    RETURN_IF_ERROR(FailJob(store, change, DescribeFailure(task, max_attempts, end.error), now));
    return TaskFate::kJobFailed;
  }
  CountLeases(change.record(), -1, change.limits_now());
  task.set_state(pausing ? TaskRecord::HELD : TaskRecord::QUEUED);
  task.set_fraction(0);
  *task.mutable_end_time() = ToTimestamp(now);
  task.clear_not_before();
  const bool returned_for_pause = end.returned && pausing;
  if (end.backoff > absl::ZeroDuration() && !smaller && !returned_for_pause) {
    *task.mutable_not_before() = ToTimestamp(now + end.backoff);
  }
  RETURN_IF_ERROR(store.PutTask(task));
  RETURN_IF_ERROR(MoveTrial(store, change, task, v1::Trial::QUEUED, now));
  RETURN_IF_ERROR(FinishPause(store, change));
  if (end.returned) {
    RETURN_IF_ERROR(
        change.Log(v1::JobEvent::LogLine::INFO,
                   absl::StrCat("Task ", task.task_id(), " was given back (", end.error.message(),
                                ")", pausing ? "" : "; it is queued again")));
    return TaskFate::kRetried;
  }
  v1::CompressionJob& job = *change.record().mutable_job();
  job.set_retry_count(job.retry_count() + 1);
  if (smaller) {
    RETURN_IF_ERROR(
        change.Log(v1::JobEvent::LogLine::WARNING,
                   absl::StrCat("Task ", task.task_id(), " ran out of memory (",
                                end.error.message(), "); it is queued again with ", less)));
    return TaskFate::kRetried;
  }
  RETURN_IF_ERROR(change.Log(
      v1::JobEvent::LogLine::WARNING,
      absl::StrCat("Attempt ", CountedAttempts(task), " of ", max_attempts, " of task ",
                   task.task_id(), " ended (", absl::StatusCodeToString(end.error.code()), ": ",
                   end.error.message(), "); it is queued again")));
  return TaskFate::kRetried;
}

absl::Status CompleteTask(StoreTransaction& store, JobChange& change, TaskRecord& task,
                          const TaskResult& result, double running, absl::Time now) {
  RETURN_IF_ERROR(CheckResult(change, task, result));
  RETURN_IF_ERROR(StoreResult(store, change, task, result, running, now));
  return FinishPause(store, change);
}

absl::Status EndSearch(StoreTransaction& store, JobChange& change, absl::Time now) {
  internal::v1::JobRecord& record = change.record();
  record.set_search_time_over(true);
  ASSIGN_OR_RETURN(const std::vector<v1::Trial> trials, store.ListTrials(change.name(), 0, 0));
  ASSIGN_OR_RETURN(const v1::ParetoFront front,
                   BuildFront(record.prepare(), change.job().spec(), trials, 0));
  const bool any = std::any_of(front.points().begin(), front.points().end(),
                               [](const v1::ParetoPoint& point) { return point.within_budget(); });
  if (!any) return absl::OkStatus();
  int over = CompletedTrials(trials);
  RETURN_IF_ERROR(
      change.Log(v1::JobEvent::LogLine::INFO,
                 absl::StrCat("limits.max_search_seconds ends the search after ", over, " of ",
                              change.job().spec().search().max_trials(), " trials")));
  ASSIGN_OR_RETURN(std::vector<TaskRecord> tasks, store.ListTasks(change.name()));
  for (TaskRecord& task : tasks) {
    // HELD: a result came while the job was PAUSING.
    if (task.state() != TaskRecord::QUEUED && task.state() != TaskRecord::HELD) continue;
    RETURN_IF_ERROR(
        CloseTask(store, change, task, TaskRecord::CANCELLED, v1::Trial::CANCELLED, now));
    ++over;
  }
  record.mutable_job()->mutable_progress()->set_completed_trial_count(over);
  record.set_search_ended(true);
  // A plan that another thread or server is making would propose more.
  record.set_plan_count(record.plan_count() + 1);
  return absl::OkStatus();
}

absl::Status FailJob(StoreTransaction& store, JobChange& change, const absl::Status& error,
                     absl::Time now) {
  ASSIGN_OR_RETURN(std::vector<TaskRecord> tasks, store.ListTasks(change.name()));
  for (TaskRecord& task : tasks) {
    if (!IsOpen(task.state())) continue;
    task.clear_lease_token();
    RETURN_IF_ERROR(
        CloseTask(store, change, task, TaskRecord::CANCELLED, v1::Trial::CANCELLED, now));
  }
  const google::rpc::Status status = ToRpcStatus(error);
  return change.EnterState(v1::CompressionJob::FAILED, &status);
}

absl::Status CancelJob(StoreTransaction& store, JobChange& change, absl::Time now) {
  ASSIGN_OR_RETURN(std::vector<TaskRecord> tasks, store.ListTasks(change.name()));
  for (TaskRecord& task : tasks) {
    if (task.state() != TaskRecord::QUEUED && task.state() != TaskRecord::HELD) continue;
    RETURN_IF_ERROR(
        CloseTask(store, change, task, TaskRecord::CANCELLED, v1::Trial::CANCELLED, now));
  }
  if (change.job().state() == v1::CompressionJob::PENDING ||
      change.job().state() == v1::CompressionJob::PAUSED) {
    return change.EnterState(v1::CompressionJob::CANCELLED, nullptr);
  }
  RETURN_IF_ERROR(change.EnterState(v1::CompressionJob::CANCELLING, nullptr));
  return FinishCancel(store, change);
}

}  // namespace qpruner::server
