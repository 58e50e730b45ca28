#include "server/queue/job_queue.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/queue/job_not_found.h"
#include "server/queue/job_states.h"
#include "server/queue/search_view.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskResponse;
using internal::v1::HeartbeatResponse;
using internal::v1::Lease;
using internal::v1::TaskRecord;

// What one heartbeat may carry.
constexpr int kMaxLogLines = 100;
constexpr size_t kMaxLogLineBytes = 4096;
// A worker that is silent for so long is forgotten.
constexpr absl::Duration kForgetWorkerAfter = absl::Hours(1);
// The store is tried again after this when it failed.
constexpr absl::Duration kStoreRetryInterval = absl::Milliseconds(200);

absl::Status Superseded() {
  return WithErrorInfo(
      absl::AbortedError("Lease superseded: the task was given to another attempt or is over"),
      "LEASE_SUPERSEDED");
}

absl::Status Stopping() {
  return WithErrorInfo(absl::UnavailableError("The server is stopping"), "SERVER_STOPPING");
}

bool IsWorkerName(absl::string_view name) {
  return !name.empty() && name.size() <= 63 &&
         (absl::ascii_islower(name[0]) || absl::ascii_isdigit(name[0])) &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '.' || c == '-';
         });
}

absl::StatusOr<JobView> LoadView(StoreReader& store, const JobName& name) {
  JobView view;
  ASSIGN_OR_RETURN(view.record, store.GetJob(name));
  ASSIGN_OR_RETURN(view.tasks, store.ListTasks(name));
  ASSIGN_OR_RETURN(view.trials, store.ListTrials(name, 0, 0));
  return view;
}

AcquireTaskResponse LeaseReply(const TaskRecord& task) {
  AcquireTaskResponse response;
  Lease& lease = *response.mutable_lease();
  lease.set_job(task.job());
  lease.set_task(task.task_id());
  lease.set_attempt(task.attempt());
  lease.set_token(task.lease_token());
  *response.mutable_task() = task.spec();
  return response;
}

absl::Duration Between(const google::protobuf::Timestamp& from, absl::Time to) {
  return to - FromTimestamp(from);
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobQueue>> JobQueue::Create(
    JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
    IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches, QueueObserver& observer) {
  std::unique_ptr<JobQueue> queue(
      new JobQueue(options, store, artifacts, clock, ids, proposer, watches, observer));
  RETURN_IF_ERROR(queue->Recover());
  return queue;
}

absl::Status JobQueue::Recover() {
  std::vector<TaskRecord> leased;
  std::vector<JobName> unfinished;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(leased, reader.LeasedTasks());
    ASSIGN_OR_RETURN(unfinished, reader.UnfinishedJobs());
    return absl::OkStatus();
  }));
  absl::MutexLock lock(&mutex_);
  for (const JobName& name : unfinished) dirty_jobs_.insert(name.ToString());
  for (const TaskRecord& task : leased) {
    ASSIGN_OR_RETURN(const JobName name, JobName::Parse(task.job()));
    leases_[task.lease_token()] =
        HeldLease{.job = name,
                  .task_id = task.task_id(),
                  .attempt = task.attempt(),
                  .worker = task.worker(),
                  .incarnation = task.incarnation(),
                  .deadline = clock_.Monotonic() + options_.lease_duration,
                  .fraction = task.fraction()};
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------
// Clients

absl::StatusOr<v1::CompressionJob> JobQueue::CreateJob(const NewJob& request) {
  const std::string job_id =
      request.job_id.empty() ? absl::StrCat("job-", ids_.Hex(6)) : request.job_id;
  const JobName name{request.project, job_id};
  v1::CompressionJob result;
  bool created = false;
  RETURN_IF_ERROR(store_.Transact([&](StoreTransaction& store) -> absl::Status {
    created = false;
    if (!request.request_id.empty()) {
      ASSIGN_OR_RETURN(const std::optional<StoreReader::Request> earlier,
                       store.FindRequest(request.project, request.request_id));
      if (earlier) {
        if (earlier->fingerprint != request.fingerprint) {
          return WithErrorInfo(absl::AlreadyExistsError(absl::StrCat(
                                   "request_id was used for another request, which made ",
                                   earlier->job.ToString(), ": ", request.request_id)),
                               "REQUEST_ID_REUSED", {{"job", earlier->job.ToString()}});
        }
        ASSIGN_OR_RETURN(const internal::v1::JobRecord record, store.GetJob(earlier->job));
        result = record.job();
        return absl::OkStatus();
      }
    }
    const absl::Time now = clock_.Now();
    internal::v1::JobRecord record;
    v1::CompressionJob& job = *record.mutable_job();
    job = request.job;
    job.set_name(name.ToString());
    job.set_state(v1::CompressionJob::PENDING);
    *job.mutable_create_time() = ToTimestamp(now);
    absl::StatusOr<JobChange> change = JobChange::Insert(store, name, record, now);
    if (absl::IsAlreadyExists(change.status())) {
      return WithErrorInfo(
          absl::AlreadyExistsError(absl::StrCat("Job already exists: ", name.ToString())),
          "JOB_ALREADY_EXISTS", {{"job", name.ToString()}});
    }
    if (!change.ok()) return change.status();
    if (!request.request_id.empty()) {
      RETURN_IF_ERROR(store.InsertRequest(request.project, request.request_id,
                                          {.job = name, .fingerprint = request.fingerprint}));
    }
    // A new job needs no search: its plan is made on the spot, and committed with it.
    const JobPlan plan = NextTasks(JobView{.record = record}, proposer_);
    for (const PlannedTask& task : plan.tasks) {
      RETURN_IF_ERROR(QueueTask(store, *change, task, now));
    }
    RETURN_IF_ERROR(change->Save());
    result = change->job();
    created = true;
    return absl::OkStatus();
  }));
  if (created) {
    spdlog::info("{}: created", result.name());
    AfterCommit(name, {.changed = true});
  }
  return result;
}

absl::StatusOr<v1::CompressionJob> JobQueue::CancelJob(const JobName& name) {
  v1::CompressionJob result;
  Effects effects;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    effects = {};
    const absl::Time now = clock_.Now();
    ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, name, now));
    const v1::CompressionJob::State state = change.job().state();
    result = change.job();
    if (state == v1::CompressionJob::CANCELLING || state == v1::CompressionJob::CANCELLED) {
      return absl::OkStatus();
    }
    if (IsFinal(state)) {
      return WithErrorInfo(absl::FailedPreconditionError(absl::StrCat(
                               "Job cannot be cancelled: it has already ",
                               v1::CompressionJob::State_Name(state), ": ", name.ToString())),
                           "JOB_NOT_CANCELLABLE",
                           {{"state", v1::CompressionJob::State_Name(state)}});
    }
    RETURN_IF_ERROR(server::CancelJob(store, change, now));
    RETURN_IF_ERROR(change.Save());
    result = change.job();
    effects.changed = true;
    if (IsFinal(result.state())) effects.finished = result.state();
    return absl::OkStatus();
  });
  if (absl::IsNotFound(status)) return JobNotFound(name);
  RETURN_IF_ERROR(status);
  if (effects.changed) {
    spdlog::info("{}: {}", result.name(), v1::CompressionJob::State_Name(result.state()));
    AfterCommit(name, effects);
  }
  return result;
}

absl::Status JobQueue::DeleteJob(const JobName& name) {
  absl::MutexLock references(&artifact_references_mutex_);
  std::set<std::string> contents;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    contents.clear();
    ASSIGN_OR_RETURN(const internal::v1::JobRecord record, store.GetJob(name));
    if (!IsFinal(record.job().state())) {
      return WithErrorInfo(
          absl::FailedPreconditionError(absl::StrCat(
              "Job is not finished (", v1::CompressionJob::State_Name(record.job().state()),
              "); cancel it first: ", name.ToString())),
          "JOB_NOT_FINISHED", {{"state", v1::CompressionJob::State_Name(record.job().state())}});
    }
    ASSIGN_OR_RETURN(const std::vector<v1::Artifact> artifacts, store.ListArtifacts(name));
    for (const v1::Artifact& artifact : artifacts) contents.insert(artifact.sha256());
    return store.DeleteJob(name);
  });
  if (absl::IsNotFound(status)) return JobNotFound(name);
  RETURN_IF_ERROR(status);
  spdlog::info("{}: deleted", name.ToString());
  watches_.Notify(name.ToString());
  for (const std::string& sha256 : contents) {
    bool referenced = true;
    absl::Status removed = store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(referenced, reader.IsArtifactReferenced(sha256));
      return absl::OkStatus();
    });
    if (removed.ok() && !referenced) removed = artifacts_.Remove(sha256);
    // The job is gone all the same; a file that stays costs space only.
    if (!removed.ok()) spdlog::warn("artifact {} was not removed: {}", sha256, removed.ToString());
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------
// Workers

absl::Status JobQueue::RegisterWorker(const internal::v1::RegisterWorkerRequest& request) {
  std::vector<FieldViolation> violations;
  if (!IsWorkerName(request.worker())) {
    violations.push_back({"worker", absl::StrCat("must match [a-z0-9][a-z0-9.-]{0,62}, is \"",
                                                 request.worker().substr(0, 100), "\"")});
  }
  if (request.incarnation().empty() || request.incarnation().size() > 128) {
    violations.push_back({"incarnation", "must be 1 to 128 bytes, different for each process"});
  }
  if (!violations.empty()) return BadRequestError(violations);

  std::vector<std::pair<std::string, HeldLease>> orphaned;
  std::vector<AcquireCallback> replaced;
  {
    absl::MutexLock lock(&mutex_);
    for (auto it = leases_.begin(); it != leases_.end();) {
      const auto current = it++;
      if (current->second.worker == request.worker() &&
          current->second.incarnation != request.incarnation()) {
        orphaned.emplace_back(current->first, std::move(current->second));
        leases_.erase(current);
      }
    }
    for (auto it = waiters_.begin(); it != waiters_.end();) {
      if (it->worker == request.worker() && it->incarnation != request.incarnation()) {
        replaced.push_back(std::move(it->done));
        it = waiters_.erase(it);
      } else {
        ++it;
      }
    }
    workers_.Register({.name = request.worker(),
                       .incarnation = request.incarnation(),
                       .device = request.device(),
                       .device_memory_bytes = request.device_memory_bytes(),
                       .version = request.version(),
                       .last_heard = clock_.Monotonic()});
  }
  for (AcquireCallback& done : replaced) {
    done(WithErrorInfo(absl::AbortedError("Another process of this name has registered"),
                       "WORKER_REPLACED"));
  }
  spdlog::info("worker {}: registered, device {}", request.worker(), request.device());
  const absl::Status error = WithErrorInfo(
      absl::UnavailableError(absl::StrCat("Worker ", request.worker(), " was restarted")),
      "WORKER_RESTARTED");
  for (auto& [token, lease] : orphaned) {
    if (absl::Status status = RevokeLease(token, lease, error); !status.ok()) {
      // Tick tries again: the lease is taken back, overdue.
      absl::MutexLock lock(&mutex_);
      lease.deadline = clock_.Monotonic();
      leases_[token] = lease;
      wake_ = true;
    }
  }
  return absl::OkStatus();
}

int64_t JobQueue::AcquireTask(const internal::v1::AcquireTaskRequest& request,
                              AcquireCallback done) {
  const absl::Duration asked =
      absl::Seconds(request.wait_time().seconds()) + absl::Nanoseconds(request.wait_time().nanos());
  const absl::Duration wait = std::clamp(asked, absl::ZeroDuration(), options_.max_acquire_wait);
  AcquireCallback superseded;
  absl::Status refused;
  int64_t id = 0;
  {
    absl::MutexLock lock(&mutex_);
    id = ++last_waiter_id_;
    if (!leasing_) {
      refused = Stopping();
    } else if (!workers_.IsRegistered(request.worker(), request.incarnation())) {
      refused = WithErrorInfo(
          absl::FailedPreconditionError(absl::StrCat("Worker is not registered (or another process "
                                                     "has registered under its name): ",
                                                     request.worker())),
          "WORKER_NOT_REGISTERED");
    } else {
      const absl::Duration now = clock_.Monotonic();
      workers_.Hear(request.worker(), now);
      const auto older = std::find_if(waiters_.begin(), waiters_.end(), [&](const Waiter& waiter) {
        return waiter.worker == request.worker();
      });
      if (older != waiters_.end()) {
        superseded = std::move(older->done);
        waiters_.erase(older);
      }
      waiters_.push_back(
          {id, request.worker(), request.incarnation(), now + wait, std::move(done)});
      wake_ = true;
    }
  }
  if (superseded) superseded(AcquireTaskResponse());
  // Moved from only where nothing was refused. NOLINTNEXTLINE(bugprone-use-after-move)
  if (!refused.ok()) done(refused);
  return id;
}

JobQueue::AcquireCallback JobQueue::TakeWaiter(int64_t id) {
  absl::MutexLock lock(&mutex_);
  const auto waiter = std::find_if(waiters_.begin(), waiters_.end(),
                                   [&](const Waiter& waiter) { return waiter.id == id; });
  if (waiter == waiters_.end()) return nullptr;
  AcquireCallback done = std::move(waiter->done);
  waiters_.erase(waiter);
  return done;
}

void JobQueue::CancelAcquire(int64_t id) {
  if (AcquireCallback done = TakeWaiter(id)) done(absl::CancelledError("The poll was given up"));
}

absl::StatusOr<HeartbeatResponse> JobQueue::CheckLease(StoreReader& store, const JobName& name,
                                                       const Lease& lease) {
  ASSIGN_OR_RETURN(const TaskRecord task, store.GetTask(name, lease.task()));
  if (!IsCurrentLease(task, lease)) return Superseded();
  ASSIGN_OR_RETURN(const internal::v1::JobRecord record, store.GetJob(name));
  HeartbeatResponse response;
  response.set_desired_state(record.job().state() == v1::CompressionJob::CANCELLING
                                 ? HeartbeatResponse::ABORT
                                 : HeartbeatResponse::CONTINUE);
  return response;
}

absl::StatusOr<HeartbeatResponse> JobQueue::Heartbeat(
    const internal::v1::HeartbeatRequest& request) {
  const Lease& lease = request.lease();
  const absl::Duration monotonic = clock_.Monotonic();
  JobName name;
  double fraction = 0;
  double running = 0;
  bool write = false;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = leases_.find(lease.token());
    if (found == leases_.end() || found->second.attempt != lease.attempt() ||
        found->second.task_id != lease.task() || found->second.job.ToString() != lease.job()) {
      return Superseded();
    }
    HeldLease& held = found->second;
    workers_.Hear(held.worker, monotonic);
    const double reported = std::isfinite(request.fraction()) ? request.fraction() : 0;
    const bool moved = reported > held.fraction;
    held.fraction = std::clamp(std::max(held.fraction, reported), 0.0, 1.0);
    const auto last = last_progress_.find(lease.job());
    const bool due =
        last == last_progress_.end() || monotonic - last->second >= options_.progress_interval;
    write = !request.logs().empty() || (due && moved);
    if (write) last_progress_[lease.job()] = monotonic;
    name = held.job;
    fraction = held.fraction;
    running = RunningFractionLocked(name, "");
  }

  HeartbeatResponse response;
  absl::Status status;
  if (write) {
    status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
      ASSIGN_OR_RETURN(response, CheckLease(store, name, lease));
      if (response.desired_state() == HeartbeatResponse::ABORT) return absl::OkStatus();
      const absl::Time now = clock_.Now();
      ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(name, lease.task()));
      task.set_fraction(fraction);
      *task.mutable_lease_expire_time() = ToTimestamp(now + options_.lease_duration);
      RETURN_IF_ERROR(store.PutTask(task));
      ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, name, now));
      for (int i = 0; i < std::min(request.logs_size(), kMaxLogLines); ++i) {
        const v1::JobEvent::LogLine& line = request.logs(i);
        RETURN_IF_ERROR(change.Log(line.severity() == v1::JobEvent::LogLine::WARNING
                                       ? v1::JobEvent::LogLine::WARNING
                                       : v1::JobEvent::LogLine::INFO,
                                   line.text().substr(0, kMaxLogLineBytes)));
      }
      const v1::Progress& progress = change.job().progress();
      RETURN_IF_ERROR(
          change.AdvanceProgress(JobFraction(change.job().stage(), progress.completed_trial_count(),
                                             progress.trial_count(), running),
                                 request.message().substr(0, kMaxLogLineBytes)));
      return change.Save();
    });
  } else {
    status = store_.Read([&](StoreReader& store) -> absl::Status {
      ASSIGN_OR_RETURN(response, CheckLease(store, name, lease));
      return absl::OkStatus();
    });
  }
  if (absl::IsNotFound(status)) status = Superseded();
  if (status.ok() && response.desired_state() == HeartbeatResponse::ABORT) {
    // Not renewed: a worker that does not obey loses the task when the lease ends.
    return response;
  }
  {
    absl::MutexLock lock(&mutex_);
    if (const auto held = leases_.find(lease.token()); held != leases_.end()) {
      // Also when the store failed: the worker is alive, and may try again.
      held->second.deadline = std::max(held->second.deadline, monotonic + options_.lease_duration);
      if (absl::IsAborted(status)) leases_.erase(held);
    }
  }
  RETURN_IF_ERROR(status);
  if (write) watches_.Notify(lease.job());
  return response;
}

absl::Status JobQueue::CheckOutputs(const internal::v1::TaskResult& result) {
  std::set<std::string> paths;
  for (const internal::v1::ArtifactRef& output : result.outputs()) {
    if (!IsArtifactPath(output.path()) || !IsSha256Hex(output.sha256()) ||
        output.size_bytes() < 0 || !paths.insert(output.path()).second) {
      return absl::InternalError(
          absl::StrCat("Output with a bad path, SHA-256 or size, or named twice: \"",
                       output.path().substr(0, 200), "\""));
    }
    ASSIGN_OR_RETURN(const bool present, artifacts_.Contains(output.sha256()));
    if (!present) {
      return absl::InternalError(absl::StrCat("Output was not uploaded: ", output.path()));
    }
  }
  return absl::OkStatus();
}

absl::Status JobQueue::CompleteTask(const internal::v1::CompleteTaskRequest& request) {
  using Request = internal::v1::CompleteTaskRequest;
  if (request.outcome_case() == Request::OUTCOME_NOT_SET ||
      (request.has_error() && request.error().code() == 0)) {
    return BadRequestError({{"outcome", "must be a result, an error with a code, or a return"}});
  }
  const absl::StatusOr<JobName> name = JobName::Parse(request.lease().job());
  if (!name.ok()) return BadRequestError({{"lease.job", std::string(name.status().message())}});

  absl::MutexLock references(&artifact_references_mutex_);
  absl::Status bad_result;
  if (request.has_result()) {
    bad_result = CheckOutputs(request.result());
    if (absl::IsUnavailable(bad_result)) return bad_result;
  }
  double running = 0;
  {
    absl::MutexLock lock(&mutex_);
    running = RunningFractionLocked(*name, request.lease().token());
  }
  Effects effects;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    effects = {};
    const absl::Time now = clock_.Now();
    ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(*name, request.lease().task()));
    if (!IsCurrentLease(task, request.lease())) {
      // The same lease completed before, and the reply was lost: the task kept its token.
      const bool repeated = !request.lease().token().empty() &&
                            task.lease_token() == request.lease().token() &&
                            task.attempt() == request.lease().attempt();
      return repeated ? absl::OkStatus() : Superseded();
    }
    ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, *name, now));
    LeaseEnd end{.backoff = BackoffAfter(CountedAttempts(task))};
    if (request.has_error()) {
      end.error = FromRpcStatus(request.error());
    } else if (request.has_returned()) {
      end = {.error = absl::UnavailableError(request.returned().reason()),
             .backoff = absl::ZeroDuration(),
             .returned = true};
    } else if (!bad_result.ok()) {
      end.error = bad_result;
    } else if (change.job().state() == v1::CompressionJob::CANCELLING) {
      end.error = absl::CancelledError("The job was cancelled");
    } else {
      const absl::Status completed =
          server::CompleteTask(store, change, task, request.result(), running, now);
      if (absl::IsInvalidArgument(completed)) {
        end.error = absl::InternalError(
            absl::StrCat("The worker sent a result that cannot be: ", completed.message()));
      } else if (!completed.ok()) {
        return completed;
      }
    }
    if (!end.error.ok()) {
      ASSIGN_OR_RETURN(effects.fate, EndLease(store, change, task, end, now));
    }
    RETURN_IF_ERROR(change.Save());
    effects.changed = true;
    if (IsFinal(change.job().state())) effects.finished = change.job().state();
    return absl::OkStatus();
  });
  if (absl::IsNotFound(status)) return Superseded();
  RETURN_IF_ERROR(status);
  if (effects.changed) {
    if (request.has_error()) {
      spdlog::warn("{}/{}: attempt {} ended: {}", request.lease().job(), request.lease().task(),
                   request.lease().attempt(), FromRpcStatus(request.error()).ToString());
    }
    {
      absl::MutexLock lock(&mutex_);
      if (const auto held = leases_.find(request.lease().token()); held != leases_.end()) {
        workers_.Hear(held->second.worker, clock_.Monotonic());
        leases_.erase(held);
      }
    }
    AfterCommit(*name, effects);
  }
  return absl::OkStatus();
}

absl::StatusOr<TaskRecord> JobQueue::FindLeasedTask(const Lease& lease) {
  const absl::StatusOr<JobName> name = JobName::Parse(lease.job());
  if (!name.ok()) return Superseded();
  {
    absl::MutexLock lock(&mutex_);
    if (!leases_.contains(lease.token())) return Superseded();
  }
  TaskRecord task;
  absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(task, reader.GetTask(*name, lease.task()));
    return absl::OkStatus();
  });
  if (absl::IsNotFound(status)) return Superseded();
  RETURN_IF_ERROR(status);
  if (!IsCurrentLease(task, lease)) return Superseded();
  return task;
}

std::vector<v1::ListCapabilitiesResponse::Worker> JobQueue::LiveWorkers() {
  absl::MutexLock lock(&mutex_);
  const absl::Duration now = clock_.Monotonic();
  for (const Waiter& waiter : waiters_) workers_.Hear(waiter.worker, now);
  std::vector<v1::ListCapabilitiesResponse::Worker> result;
  for (const WorkerInfo& worker : workers_.HeardSince(now - options_.lease_duration)) {
    v1::ListCapabilitiesResponse::Worker& to = result.emplace_back();
    to.set_name(worker.name);
    to.set_device(worker.device);
    to.set_device_memory_bytes(worker.device_memory_bytes);
    to.set_running_task_count(
        static_cast<int>(std::count_if(leases_.begin(), leases_.end(), [&](const auto& entry) {
          return entry.second.worker == worker.name;
        })));
  }
  return result;
}

// ---------------------------------------------------------------------------------------------
// Time

void JobQueue::Tick() {
  {
    absl::MutexLock lock(&mutex_);
    workers_.ForgetSilentSince(clock_.Monotonic() - kForgetWorkerAfter);
  }
  ExpireLeases();
  // Tasks that are queued already need not wait for a search.
  ServeWaiters();
  PlanDirtyJobs();
  ServeWaiters();
  ExpireWaiters();
}

void JobQueue::Wake() {
  absl::MutexLock lock(&mutex_);
  wake_ = true;
}

void JobQueue::WaitForWork() {
  const absl::Duration timeout = TimeToNextDeadline();
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&wake_), timeout);
  wake_ = false;
}

absl::Duration JobQueue::TimeToNextDeadline() {
  // Upper bound, so that a wall clock that jumps cannot delay a retry for long.
  absl::Duration wait = absl::Seconds(5);
  bool anyone_waits = false;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Monotonic();
    for (const auto& [token, lease] : leases_) wait = std::min(wait, lease.deadline - now);
    for (const Waiter& waiter : waiters_) wait = std::min(wait, waiter.deadline - now);
    if (!dirty_jobs_.empty()) wait = std::min(wait, kStoreRetryInterval);
    anyone_waits = !waiters_.empty();
  }
  if (anyone_waits) {
    const absl::Time now = clock_.Now();
    std::optional<absl::Time> next;
    const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(next, reader.NextNotBefore(now));
      return absl::OkStatus();
    });
    if (!status.ok()) wait = std::min(wait, kStoreRetryInterval);
    if (next) wait = std::min(wait, *next - now);
  }
  // Not before it: a rounded-down wait would spin.
  return std::max(wait, absl::Milliseconds(1));
}

void JobQueue::StopLeasing() {
  std::deque<Waiter> waiters;
  {
    absl::MutexLock lock(&mutex_);
    leasing_ = false;
    waiters.swap(waiters_);
  }
  for (Waiter& waiter : waiters) waiter.done(Stopping());
}

void JobQueue::ExpireLeases() {
  std::vector<std::pair<std::string, HeldLease>> expired;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Monotonic();
    for (auto it = leases_.begin(); it != leases_.end();) {
      const auto current = it++;
      if (current->second.deadline > now) continue;
      expired.emplace_back(current->first, std::move(current->second));
      leases_.erase(current);
    }
  }
  // In a fixed order, whatever the hash says.
  std::sort(expired.begin(), expired.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second.deadline, a.first) < std::pair(b.second.deadline, b.first);
  });
  for (auto& [token, lease] : expired) {
    const absl::Status error =
        WithErrorInfo(absl::UnavailableError(absl::StrCat(
                          "Lease expired: worker ", lease.worker, " was not heard from for ",
                          absl::FormatDuration(options_.lease_duration))),
                      "LEASE_EXPIRED");
    if (RevokeLease(token, lease, error).ok()) {
      observer_.OnLeaseExpired();
      continue;
    }
    absl::MutexLock lock(&mutex_);
    lease.deadline = clock_.Monotonic() + kStoreRetryInterval;
    leases_[token] = lease;
  }
}

absl::Status JobQueue::RevokeLease(const std::string& token, const HeldLease& lease,
                                   const absl::Status& error) {
  spdlog::warn("{}/{}: attempt {} is over: {}", lease.job.ToString(), lease.task_id, lease.attempt,
               std::string(error.message()));
  Effects effects;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    effects = {};
    const absl::Time now = clock_.Now();
    ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(lease.job, lease.task_id));
    // It may have been completed in the meantime.
    if (task.state() != TaskRecord::LEASED || task.lease_token() != token) return absl::OkStatus();
    ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, lease.job, now));
    // The time without the worker was back-off enough.
    const LeaseEnd end{.error = error, .backoff = absl::ZeroDuration(), .revoked = true};
    ASSIGN_OR_RETURN(effects.fate, EndLease(store, change, task, end, now));
    RETURN_IF_ERROR(change.Save());
    effects.changed = true;
    if (IsFinal(change.job().state())) effects.finished = change.job().state();
    return absl::OkStatus();
  });
  if (absl::IsNotFound(status)) return absl::OkStatus();
  if (!status.ok()) {
    spdlog::error("the store failed: {}", status.ToString());
    return status;
  }
  if (effects.changed) AfterCommit(lease.job, effects);
  return absl::OkStatus();
}

void JobQueue::PlanDirtyJobs() {
  std::vector<std::string> dirty;
  {
    absl::MutexLock lock(&mutex_);
    dirty.assign(dirty_jobs_.begin(), dirty_jobs_.end());
    dirty_jobs_.clear();
  }
  std::sort(dirty.begin(), dirty.end());
  for (const std::string& name : dirty) {
    const absl::StatusOr<JobName> job = JobName::Parse(name);
    if (!job.ok()) continue;
    if (absl::Status status = PlanJob(*job); !status.ok()) {
      spdlog::error("{}: planning failed, will be tried again: {}", name, status.ToString());
      // No wake-up: WaitForWork comes back to it after kStoreRetryInterval.
      absl::MutexLock lock(&mutex_);
      dirty_jobs_.insert(name);
    }
  }
}

absl::Status JobQueue::PlanJob(const JobName& name) {
  absl::StatusOr<JobView> view = absl::UnknownError("not read");
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    view = LoadView(reader, name);
    return absl::IsNotFound(view.status()) ? absl::OkStatus() : view.status();
  }));
  if (!view.ok()) return absl::OkStatus();  // Deleted.
  // Outside of the transaction: the search may take its time.
  const JobPlan plan = NextTasks(*view, proposer_);
  if (plan.empty()) return absl::OkStatus();

  const internal::v1::JobRecord& seen = view->record;
  bool outdated = false;
  Effects effects;
  std::vector<FinishedStage> stages;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    outdated = false;
    effects = {};
    stages.clear();
    const absl::Time now = clock_.Now();
    ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, name, now));
    // Only this thread plans, and trials that finished meanwhile do not touch the proposals: what
    // can have come between is that the job was cancelled or has failed.
    if (change.job().state() != seen.job().state() || change.job().stage() != seen.job().stage()) {
      outdated = true;
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(ApplyPlan(store, change, *view, plan, now, stages));
    RETURN_IF_ERROR(change.Save());
    effects.changed = true;
    if (IsFinal(change.job().state())) effects.finished = change.job().state();
    return absl::OkStatus();
  });
  if (absl::IsNotFound(status)) return absl::OkStatus();
  RETURN_IF_ERROR(status);
  if (outdated) {
    MarkDirty(name);
    return absl::OkStatus();
  }
  for (const FinishedStage& stage : stages) observer_.OnStageFinished(stage.stage, stage.duration);
  AfterCommit(name, effects);
  return absl::OkStatus();
}

absl::Status JobQueue::ApplyPlan(StoreTransaction& store, JobChange& change, const JobView& view,
                                 const JobPlan& plan, absl::Time now,
                                 std::vector<FinishedStage>& stages) {
  if (!plan.failure.ok()) return FailJob(store, change, plan.failure, now);
  auto task_named = [&](const char* id) -> const TaskRecord* {
    for (const TaskRecord& task : view.tasks) {
      if (task.task_id() == id) return &task;
    }
    return nullptr;
  };
  internal::v1::JobRecord& record = change.record();
  if (plan.trial_count) {
    record.mutable_job()->mutable_progress()->set_trial_count(*plan.trial_count);
  }
  if (plan.stage) {
    if (*plan.stage == v1::CompressionJob::SEARCH) {
      stages.push_back({v1::CompressionJob::PREPARE, Between(record.job().start_time(), now)});
    } else if (const TaskRecord* prepare = task_named(kPrepareTaskId)) {
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
    if (const TaskRecord* finalize = task_named(kFinalizeTaskId)) {
      stages.push_back({v1::CompressionJob::FINALIZE, Between(finalize->create_time(), now)});
    }
    RETURN_IF_ERROR(change.AdvanceProgress(1, "done"));
    RETURN_IF_ERROR(change.EnterState(v1::CompressionJob::SUCCEEDED, nullptr));
  }
  return absl::OkStatus();
}

void JobQueue::ServeWaiters() {
  RedeliverLeases();
  if (absl::Status status = LeaseToWaiters(); !status.ok()) {
    spdlog::error("no task could be leased, will be tried again: {}", status.ToString());
  }
}

void JobQueue::RedeliverLeases() {
  struct Holder {
    int64_t waiter_id;
    std::string token;
    JobName job;
    std::string task_id;
  };
  std::vector<Holder> holders;
  {
    absl::MutexLock lock(&mutex_);
    for (const Waiter& waiter : waiters_) {
      for (const auto& [token, held] : leases_) {
        if (held.worker == waiter.worker && held.incarnation == waiter.incarnation) {
          holders.push_back({waiter.id, token, held.job, held.task_id});
          break;
        }
      }
    }
  }
  for (const Holder& holder : holders) {
    absl::StatusOr<AcquireTaskResponse> reply = AcquireTaskResponse();
    const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(const TaskRecord task, reader.GetTask(holder.job, holder.task_id));
      if (task.state() != TaskRecord::LEASED || task.lease_token() != holder.token) {
        return absl::NotFoundError("over");
      }
      *reply = LeaseReply(task);
      return absl::OkStatus();
    });
    if (!status.ok() && !absl::IsNotFound(status)) reply = status;
    {
      absl::MutexLock lock(&mutex_);
      if (const auto held = leases_.find(holder.token); held != leases_.end()) {
        held->second.deadline = clock_.Monotonic() + options_.lease_duration;
        if (absl::IsNotFound(status)) leases_.erase(held);
      }
    }
    // A lease that is over leaves the poll waiting for the next task.
    if (absl::IsNotFound(status)) continue;
    if (AcquireCallback done = TakeWaiter(holder.waiter_id)) done(std::move(reply));
  }
}

absl::Status JobQueue::LeaseToWaiters() {
  struct Grant {
    int64_t waiter_id;
    NewLease lease;
    std::optional<TaskRecord> task;
  };
  std::vector<Grant> grants;
  {
    absl::MutexLock lock(&mutex_);
    if (!leasing_) return absl::OkStatus();
    for (const Waiter& waiter : waiters_) {
      grants.push_back(
          {waiter.id, {.worker = waiter.worker, .incarnation = waiter.incarnation}, std::nullopt});
    }
  }
  if (grants.empty()) return absl::OkStatus();
  for (Grant& grant : grants) grant.lease.token = ids_.Hex(16);

  // Most polls find nothing: a snapshot tells that without a write.
  bool any_queued = false;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<TaskRecord> tasks, reader.QueuedTasks(clock_.Now(), 1));
    any_queued = !tasks.empty();
    return absl::OkStatus();
  }));
  if (!any_queued) return absl::OkStatus();
  RETURN_IF_ERROR(store_.Transact([&](StoreTransaction& store) -> absl::Status {
    for (Grant& grant : grants) grant.task.reset();
    const absl::Time now = clock_.Now();
    ASSIGN_OR_RETURN(std::vector<TaskRecord> tasks,
                     store.QueuedTasks(now, static_cast<int>(grants.size())));
    for (size_t i = 0; i < tasks.size(); ++i) {
      ASSIGN_OR_RETURN(const JobName name, JobName::Parse(tasks[i].job()));
      ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, name, now));
      grants[i].lease.expire_time = now + options_.lease_duration;
      RETURN_IF_ERROR(LeaseTask(store, change, tasks[i], grants[i].lease, now));
      RETURN_IF_ERROR(change.Save());
      grants[i].task = tasks[i];
    }
    return absl::OkStatus();
  }));
  {
    absl::MutexLock lock(&mutex_);
    for (const Grant& grant : grants) {
      if (!grant.task) continue;
      const absl::StatusOr<JobName> name = JobName::Parse(grant.task->job());
      HeldLease& held = leases_[grant.lease.token];
      held = HeldLease{.job = *name,
                       .task_id = grant.task->task_id(),
                       .attempt = grant.task->attempt(),
                       .worker = grant.lease.worker,
                       .incarnation = grant.lease.incarnation,
                       .deadline = clock_.Monotonic() + options_.lease_duration};
      // Another process took the worker's name while the store was at work: over at once.
      if (!workers_.IsRegistered(held.worker, held.incarnation)) {
        held.deadline = clock_.Monotonic();
        wake_ = true;
      }
    }
  }
  for (const Grant& grant : grants) {
    if (!grant.task) continue;
    spdlog::info("{}/{}: attempt {} leased to {}", grant.task->job(), grant.task->task_id(),
                 grant.task->attempt(), grant.lease.worker);
    observer_.OnLeaseAcquired();
    watches_.Notify(grant.task->job());
    // If the poll ended meanwhile, the worker's next one gets the lease.
    if (AcquireCallback done = TakeWaiter(grant.waiter_id)) done(LeaseReply(*grant.task));
  }
  return absl::OkStatus();
}

void JobQueue::ExpireWaiters() {
  std::vector<AcquireCallback> expired;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Monotonic();
    for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
      if (waiter->deadline > now) {
        ++waiter;
        continue;
      }
      workers_.Hear(waiter->worker, now);
      expired.push_back(std::move(waiter->done));
      waiter = waiters_.erase(waiter);
    }
  }
  for (AcquireCallback& done : expired) done(AcquireTaskResponse());
}

// ---------------------------------------------------------------------------------------------

void JobQueue::AfterCommit(const JobName& name, const Effects& effects) {
  const std::string job = name.ToString();
  {
    absl::MutexLock lock(&mutex_);
    if (effects.finished) {
      // A failed job takes its other leases with it: their next call gets ABORTED.
      for (auto it = leases_.begin(); it != leases_.end();) {
        const auto current = it++;
        if (current->second.job.ToString() == job) leases_.erase(current);
      }
      last_progress_.erase(job);
    } else {
      dirty_jobs_.insert(job);
    }
    wake_ = true;
  }
  if (effects.fate == TaskFate::kRetried) observer_.OnTaskRetried();
  if (effects.finished) {
    spdlog::info("{}: {}", job, v1::CompressionJob::State_Name(*effects.finished));
    observer_.OnJobFinished(*effects.finished);
  }
  watches_.Notify(job);
}

void JobQueue::MarkDirty(const JobName& name) {
  absl::MutexLock lock(&mutex_);
  dirty_jobs_.insert(name.ToString());
  wake_ = true;
}

double JobQueue::RunningFractionLocked(const JobName& job, const std::string& except_token) const {
  double sum = 0;
  for (const auto& [token, lease] : leases_) {
    if (token != except_token && lease.job.project == job.project && lease.job.job == job.job) {
      sum += lease.fraction;
    }
  }
  return sum;
}

absl::Duration JobQueue::BackoffAfter(int attempt) const {
  absl::Duration backoff = options_.retry_backoff;
  for (int i = 1; i < attempt && backoff < options_.max_retry_backoff; ++i) backoff *= 2;
  return std::min(backoff, options_.max_retry_backoff);
}

}  // namespace qpruner::server
