#include "server/queue/task_leasing.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "proto/status_codec.h"
#include "server/queue/task_schedule.h"
#include "server/queue/task_transitions.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskResponse;
using internal::v1::Lease;
using internal::v1::TaskRecord;

// A worker that is silent for so long is forgotten.
constexpr absl::Duration kForgetWorkerAfter = absl::Hours(1);
// Of what a worker says of itself, in bytes: its device and its version.
constexpr size_t kMaxDescriptionBytes = 64;
// Places become free as workers fall silent.
constexpr absl::Duration kPlaceRetry = absl::Seconds(10);
// A task whose job another server has in a transaction is tried again after this.
constexpr absl::Duration kBusyRetryInterval = absl::Milliseconds(20);
// Tasks of a queue that are looked at: enough for the workers that wait and to find one that a
// worker holds the model of.
constexpr int kFewestCandidates = 16;
constexpr int kMostCandidates = 128;
// What a worker says that it can read.
constexpr int kMaxReadableUris = 64;
constexpr size_t kMaxReadableUriBytes = 512;

std::shared_ptr<const std::vector<std::string>> ReadableUrisOf(
    const internal::v1::RegisterWorkerRequest& request) {
  if (request.readable_uris().empty()) return nullptr;
  return std::make_shared<std::vector<std::string>>(request.readable_uris().begin(),
                                                    request.readable_uris().end());
}

absl::Status Stopping() {
  return WithErrorInfo(absl::UnavailableError("The server is stopping"), "SERVER_STOPPING");
}

absl::Status NotRegistered(const std::string& worker) {
  return WithErrorInfo(absl::FailedPreconditionError(
                           absl::StrCat("Worker is not registered: ", CutUtf8(worker, 100))),
                       "WORKER_NOT_REGISTERED");
}

absl::Status Replaced(const std::string& worker) {
  return WithErrorInfo(absl::AbortedError(absl::StrCat(
                           "Another process has registered under this worker's name: ", worker)),
                       "WORKER_REPLACED");
}

absl::Status Unwelcome(WorkerRegistry::Standing standing, const std::string& worker) {
  return standing == WorkerRegistry::Standing::kReplaced ? Replaced(worker) : NotRegistered(worker);
}

bool IsWorkerName(absl::string_view name) {
  return !name.empty() && name.size() <= 63 &&
         (absl::ascii_islower(name[0]) || absl::ascii_isdigit(name[0])) &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '.' || c == '-';
         });
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

}  // namespace

absl::Status TaskLeasing::Recover() {
  std::vector<TaskRecord> leased;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(leased, reader.LeasedTasks());
    return absl::OkStatus();
  }));
  const absl::Duration now = clock_.Monotonic();
  for (const TaskRecord& task : leased) {
    leases_.Put(ToHeldLease(task, now, options_.lease_duration));
  }
  last_sync_ = now;
  next_sync_ = now + StoredRenewalInterval(options_.lease_duration) / 2;
  return absl::OkStatus();
}

absl::Status TaskLeasing::LearnLeasesOf(const std::string& worker) {
  std::vector<TaskRecord> leased;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(leased, reader.LeasedTasksOf({worker}));
    return absl::OkStatus();
  }));
  const absl::Duration now = clock_.Monotonic();
  for (const TaskRecord& task : leased) {
    if (!leases_.Find(task.lease_token())) {
      leases_.Put(ToHeldLease(task, now, options_.lease_duration));
    }
  }
  return absl::OkStatus();
}

absl::Status TaskLeasing::RegisterWorker(const internal::v1::RegisterWorkerRequest& request) {
  std::vector<FieldViolation> violations;
  if (!IsWorkerName(request.worker())) {
    violations.push_back({"worker", absl::StrCat("must match [a-z0-9][a-z0-9.-]{0,62}, is \"",
                                                 CutUtf8(request.worker(), 100), "\"")});
  }
  if (request.incarnation().empty() || request.incarnation().size() > 128) {
    violations.push_back({"incarnation", "must be 1 to 128 bytes, different for each process"});
  }
  if (request.readable_uris_size() > kMaxReadableUris ||
      std::any_of(request.readable_uris().begin(), request.readable_uris().end(),
                  [](const std::string& uri) { return uri.size() > kMaxReadableUriBytes; })) {
    violations.push_back(
        {"readable_uris", absl::StrCat("must be at most ", kMaxReadableUris, " of at most ",
                                       kMaxReadableUriBytes, " bytes")});
  }
  const auto check_length = [&](const char* field, const std::string& text) {
    if (text.size() <= kMaxDescriptionBytes) return;
    violations.push_back({field, absl::StrCat("must be at most ", kMaxDescriptionBytes,
                                              " bytes, is ", text.size())});
  };
  check_length("device", request.device());
  check_length("version", request.version());
  if (!violations.empty()) return BadRequestError(violations);

  // Registered first: what is polled or leased under the old process after this is turned away.
  if (workers_.IsFull()) HearWaiting();
  const absl::Duration now = clock_.Monotonic();
  if (!workers_.Register({.name = request.worker(),
                          .incarnation = request.incarnation(),
                          .device = request.device(),
                          .device_memory_bytes = request.device_memory_bytes(),
                          .version = request.version(),
                          .readable_uris = ReadableUrisOf(request),
                          .last_heard = now},
                         now - options_.lease_duration)) {
    return QuotaError("TOO_MANY_WORKERS", "server",
                      absl::StrCat("More than ", options_.max_workers, " workers"), kPlaceRetry);
  }
  for (AcquirePoll& poll : polls_.TakeOfOtherProcesses(request.worker(), request.incarnation())) {
    poll.done(Replaced(request.worker()));
  }
  spdlog::info("worker {}: registered, device {}", request.worker(), request.device());
  if (store_.shared()) RETURN_IF_ERROR(LearnLeasesOf(request.worker()));
  for (HeldLease& lease : leases_.TakeOfOtherProcesses(request.worker(), request.incarnation())) {
    // Tick tries again if this fails.
    lease.worker_replaced = true;
    if (!Revoke(std::move(lease)).ok()) work_.Wake();
  }
  return absl::OkStatus();
}

int64_t TaskLeasing::AcquireTask(const internal::v1::AcquireTaskRequest& request,
                                 AcquireCallback done) {
  const absl::Duration asked =
      absl::Seconds(request.wait_time().seconds()) + absl::Nanoseconds(request.wait_time().nanos());
  const absl::Duration now = clock_.Monotonic();
  AcquirePoll poll{
      .id = polls_.NewId(),
      .worker = request.worker(),
      .incarnation = request.incarnation(),
      .prepared_job = request.prepared_job(),
      .deadline = now + std::clamp(asked, absl::ZeroDuration(), options_.max_acquire_wait),
      .done = std::move(done)};
  const int64_t id = poll.id;
  using Standing = WorkerRegistry::Standing;
  const Standing before = workers_.StandingOf(request.worker(), request.incarnation());
  if (before != Standing::kRegistered) {
    poll.done(polls_.closed() ? Stopping() : Unwelcome(before, request.worker()));
    return id;
  }
  if (!request.prepared_job().empty()) {
    if (const auto job = JobName::Parse(request.prepared_job()); !job.ok()) {
      poll.done(BadRequestError({{"prepared_job", std::string(job.status().message())}}));
      return id;
    }
  }
  workers_.Hear(request.worker(), now);
  std::optional<AcquirePoll> older;
  if (!polls_.Add(poll, older)) {
    poll.done(Stopping());
    return id;
  }
  if (older) older->done(AcquireTaskResponse());
  // Another process may have registered, and ended this one's polls, just before this was added.
  const Standing after = workers_.StandingOf(request.worker(), request.incarnation());
  if (after != Standing::kRegistered) Answer(id, Unwelcome(after, request.worker()));
  work_.Wake();
  return id;
}

void TaskLeasing::Answer(int64_t id, absl::StatusOr<AcquireTaskResponse> response) {
  if (std::optional<AcquirePoll> poll = polls_.Take(id)) poll->done(std::move(response));
}

void TaskLeasing::CancelAcquire(int64_t id) {
  Answer(id, absl::CancelledError("The poll was given up"));
}

void TaskLeasing::HearWaiting() {
  const absl::Duration now = clock_.Monotonic();
  for (const AcquirePoll& poll : polls_.List()) workers_.Hear(poll.worker, now);
}

std::vector<v1::ListCapabilitiesResponse::Worker> TaskLeasing::LiveWorkers() {
  HearWaiting();
  const absl::Duration now = clock_.Monotonic();
  std::vector<v1::ListCapabilitiesResponse::Worker> result;
  for (const WorkerInfo& worker : workers_.HeardSince(now - options_.lease_duration)) {
    v1::ListCapabilitiesResponse::Worker& to = result.emplace_back();
    to.set_name(worker.name);
    to.set_device(worker.device);
    to.set_device_memory_bytes(worker.device_memory_bytes);
    to.set_running_task_count(leases_.CountOf(worker.name));
  }
  return result;
}

void TaskLeasing::StopLeasing() {
  for (AcquirePoll& poll : polls_.Close()) poll.done(Stopping());
}

// ---------------------------------------------------------------------------------------------
// Time

void TaskLeasing::ForgetSilentWorkers() {
  workers_.ForgetSilentSince(clock_.Monotonic() - kForgetWorkerAfter);
}

std::optional<absl::Duration> TaskLeasing::TimeToNextDeadline() {
  std::optional<absl::Duration> wait;
  const auto at_most = [&](absl::Duration time) { wait = wait ? std::min(*wait, time) : time; };
  const absl::Duration now = clock_.Monotonic();
  if (const auto deadline = leases_.NextDeadline()) at_most(*deadline - now);
  if (store_.shared()) at_most(next_sync_ - now);
  if (polls_.empty()) return wait;
  if (tasks_were_busy_) at_most(kBusyRetryInterval);
  if (const auto deadline = polls_.NextDeadline()) at_most(*deadline - now);
  // Somebody waits: a task whose back-off ends is due then.
  const absl::Time wall = clock_.Now();
  std::optional<absl::Time> next;
  const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(next, reader.NextNotBefore(wall));
    return absl::OkStatus();
  });
  if (!status.ok()) at_most(kStoreRetryInterval);
  if (next) at_most(*next - wall);
  return wait;
}

void TaskLeasing::SyncLeases() {
  if (!store_.shared()) return;
  const absl::Duration read_at = clock_.Monotonic();
  if (!sync_soon_.exchange(false) && read_at < next_sync_) return;
  std::vector<TaskRecord> leased;
  const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(leased, reader.LeasedTasks());
    return absl::OkStatus();
  });
  if (!status.ok()) {
    next_sync_ = read_at + kStoreRetryInterval;
    return;
  }
  const absl::Duration interval = StoredRenewalInterval(options_.lease_duration);
  // The store was away: nobody could renew a lease in it, and silence meant nothing.
  if (read_at - last_sync_ > interval) leases_.RenewAll(read_at + options_.lease_duration);
  leases_.Sync(leased, read_at, options_.lease_duration);
  last_sync_ = read_at;
  next_sync_ = read_at + interval / 2;
}

void TaskLeasing::ExpireLeases() {
  // Without news from the other servers nobody can be called silent.
  if (store_.shared() &&
      clock_.Monotonic() - last_sync_ > StoredRenewalInterval(options_.lease_duration)) {
    return;
  }
  for (HeldLease& lease : leases_.TakeExpired(clock_.Monotonic())) {
    const bool silent = !lease.worker_replaced;
    if (Revoke(std::move(lease)).value_or(false) && silent) observer_.OnLeaseExpired();
  }
}

absl::StatusOr<bool> TaskLeasing::Revoke(HeldLease lease) {
  const absl::Status error =
      lease.worker_replaced
          ? WithErrorInfo(
                absl::UnavailableError(absl::StrCat("Worker ", lease.worker, " was restarted")),
                "WORKER_RESTARTED")
          : WithErrorInfo(absl::UnavailableError(absl::StrCat(
                              "Lease expired: worker ", lease.worker, " was not heard from for ",
                              absl::FormatDuration(options_.lease_duration))),
                          "LEASE_EXPIRED");
  bool revoked = false;
  std::optional<TaskRecord> renewed;
  absl::Status status = changes_.Run(
      lease.job,
      [&](StoreTransaction& store, JobChange& change, absl::Time now,
          CommitEffects& effects) -> absl::Status {
        revoked = false;
        renewed.reset();
        ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(lease.job, lease.task_id));
        // It may have been completed in the meantime.
        if (task.state() != TaskRecord::LEASED || task.lease_token() != lease.token) {
          return absl::OkStatus();
        }
        if (!lease.worker_replaced && task.renewal_count() != lease.renewal_count) {
          renewed = std::move(task);
          return absl::OkStatus();
        }
        // The time without the worker was back-off enough.
        const LeaseEnd end{.error = error, .backoff = absl::ZeroDuration(), .revoked = true};
        ASSIGN_OR_RETURN(effects.fate, EndLease(store, change, task, end, now));
        effects.changed = revoked = true;
        return absl::OkStatus();
      });
  if (absl::IsNotFound(status)) return false;
  if (!status.ok() && !absl::IsUnavailable(status)) {
    spdlog::error("{}/{}: cannot be ended and is set aside: {}", lease.job.ToString(),
                  lease.task_id, status.ToString());
    status = changes_.SetAside(lease.job, lease.task_id, lease.token);
    if (status.ok()) return false;
  }
  if (!status.ok()) {
    spdlog::error("the store failed: {}", status.ToString());
    lease.deadline = clock_.Monotonic();
    if (!lease.worker_replaced) lease.deadline += kStoreRetryInterval;
    leases_.Put(std::move(lease));
    return status;
  }
  if (renewed) leases_.Put(ToHeldLease(*renewed, clock_.Monotonic(), options_.lease_duration));
  if (revoked) {
    spdlog::warn("{}/{}: attempt {} is over: {}", lease.job.ToString(), lease.task_id,
                 lease.attempt, std::string(error.message()));
  }
  return revoked;
}

void TaskLeasing::ServePolls() {
  RedeliverLeases();
  if (absl::Status status = LeaseToPolls(); !status.ok()) {
    spdlog::error("no task could be leased, will be tried again: {}", status.ToString());
  }
}

void TaskLeasing::RedeliverLeases() {
  for (const AcquirePoll& poll : polls_.List()) {
    const std::optional<HeldLease> held = leases_.FindOf(poll.worker, poll.incarnation);
    if (!held) continue;
    absl::StatusOr<AcquireTaskResponse> reply = AcquireTaskResponse();
    const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(const TaskRecord task, reader.GetTask(held->job, held->task_id));
      if (task.state() != TaskRecord::LEASED || task.lease_token() != held->token) {
        return absl::NotFoundError("over");
      }
      *reply = LeaseReply(task);
      return absl::OkStatus();
    });
    // A lease that is over leaves the poll waiting for the next task; so does one whose task cannot
    // be read.
    if (absl::IsNotFound(status) || absl::IsDataLoss(status)) {
      leases_.Erase(held->token);
      continue;
    }
    leases_.Renew(held->token, clock_.Monotonic() + options_.lease_duration);
    if (!status.ok()) reply = status;
    Answer(poll.id, std::move(reply));
  }
}

absl::Status TaskLeasing::LeaseToPolls() {
  struct Grant {
    int64_t poll_id = 0;
    NewLease lease;
    JobName job;
    std::string task_id;
    std::optional<TaskRecord> task;
    // The worker holds this one already: another server granted it, and the reply was lost.
    bool is_old = false;
  };
  tasks_were_busy_ = false;
  shares_.Advance(clock_.Monotonic(), leases_.CountByProject());
  const std::vector<AcquirePoll> polls = polls_.List();
  if (polls.empty()) return absl::OkStatus();

  // What is granted is decided on a snapshot, which most polls find empty, and then taken.
  const int limit = std::clamp(static_cast<int>(polls.size()), kFewestCandidates, kMostCandidates);
  std::vector<StoreReader::TaskQueue> queues;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(queues, reader.TaskQueues(clock_.Now(), limit));
    return absl::OkStatus();
  }));
  std::set<std::string> projects;
  for (const StoreReader::TaskQueue& queue : queues) projects.insert(queue.project);
  shares_.SetWaiting(projects);
  if (queues.empty()) return absl::OkStatus();
  std::vector<WaitingWorker> workers;
  for (const AcquirePoll& poll : polls) {
    workers.push_back({.device_memory_bytes = workers_.DeviceMemoryOf(poll.worker),
                       .prepared_job = poll.prepared_job,
                       .readable_uris = workers_.ReadableUrisOf(poll.worker)});
  }
  std::vector<Grant> grants;
  std::vector<std::string> chosen;
  for (const TaskAssignment& assignment :
       ScheduleTasks(workers, queues, clock_.Now(), options_.affinity_patience, shares_)) {
    const AcquirePoll& poll = polls[assignment.worker];
    ASSIGN_OR_RETURN(JobName job, JobName::Parse(assignment.task->job()));
    Grant& grant = grants.emplace_back();
    grant.poll_id = poll.id;
    grant.lease.token = ids_.Hex(16);
    grant.lease.worker = poll.worker;
    grant.lease.incarnation = poll.incarnation;
    grant.job = std::move(job);
    grant.task_id = assignment.task->task_id();
    chosen.push_back(poll.worker);
  }
  if (grants.empty()) return absl::OkStatus();

  size_t missed_count = 0;
  const Grant* blamed = nullptr;
  const absl::Status granted = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    const ChangeTime now = changes_.Now();
    missed_count = 0;
    blamed = nullptr;
    std::vector<TaskRecord> held_elsewhere;
    if (store_.shared()) {
      ASSIGN_OR_RETURN(held_elsewhere, store.LeasedTasksOf(chosen));
    }
    for (Grant& grant : grants) {
      grant.task.reset();
      grant.is_old = false;
      const auto held =
          std::find_if(held_elsewhere.begin(), held_elsewhere.end(), [&](const TaskRecord& task) {
            return task.worker() == grant.lease.worker &&
                   task.incarnation() == grant.lease.incarnation;
          });
      if (held != held_elsewhere.end()) {
        grant.task = *held;
        grant.is_old = true;
        continue;
      }
      ASSIGN_OR_RETURN(std::optional<TaskRecord> task,
                       store.TakeTask(grant.job, grant.task_id, now.wall));
      if (!task) {
        ++missed_count;
        continue;
      }
      grant.lease.expire_time = now.wall + options_.lease_duration;
      blamed = &grant;
      ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, grant.job, now));
      RETURN_IF_ERROR(LeaseTask(store, change, *task, grant.lease, now.wall));
      RETURN_IF_ERROR(change.Save());
      blamed = nullptr;
      grant.task = std::move(task);
    }
    return absl::OkStatus();
  });
  if (blamed != nullptr && !granted.ok() && !absl::IsUnavailable(granted)) {
    // Its rows are damaged. The others, who have lost this turn, must not wait for it.
    spdlog::error("{}/{}: cannot be leased and is set aside: {}", blamed->job.ToString(),
                  blamed->task_id, granted.ToString());
    return changes_.SetAside(blamed->job, blamed->task_id, /*token=*/"");
  }
  RETURN_IF_ERROR(granted);
  tasks_were_busy_ = store_.shared() && missed_count > 0;
  // Others of the many that wait may fit the workers that are left.
  const bool more = grants.size() < polls.size() &&
                    std::any_of(queues.begin(), queues.end(), [&](const auto& queue) {
                      return static_cast<int>(queue.tasks.size()) == limit;
                    });
  if (more || (missed_count > 0 && !store_.shared())) work_.Wake();
  for (const Grant& grant : grants) {
    if (!grant.task) continue;
    HeldLease held = ToHeldLease(*grant.task, clock_.Monotonic(), options_.lease_duration);
    leases_.Put(held);
    // Another process took the worker's name while the store was at work: over at once.
    if (!workers_.IsRegistered(held.worker, held.incarnation)) {
      held.deadline = clock_.Monotonic();
      leases_.Put(std::move(held));
      work_.Wake();
    }
    if (!grant.is_old) {
      spdlog::info("{}/{}: attempt {} leased to {}", grant.task->job(), grant.task->task_id(),
                   grant.task->attempt(), grant.lease.worker);
      observer_.OnLeaseAcquired();
      watches_.Notify(grant.task->job());
    }
    // If the poll ended meanwhile, the worker's next one gets the lease.
    Answer(grant.poll_id, LeaseReply(*grant.task));
  }
  return absl::OkStatus();
}

void TaskLeasing::ExpirePolls() {
  const absl::Duration now = clock_.Monotonic();
  for (AcquirePoll& poll : polls_.TakeExpired(now)) {
    workers_.Hear(poll.worker, now);
    poll.done(AcquireTaskResponse());
  }
}

}  // namespace qpruner::server
