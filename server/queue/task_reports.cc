#include "server/queue/task_reports.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "proto/status_codec.h"
#include "server/queue/job_planner.h"
#include "server/queue/task_checkpoints.h"
#include "server/queue/task_transitions.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

using internal::v1::HeartbeatRequest;
using internal::v1::HeartbeatResponse;
using internal::v1::Lease;
using internal::v1::TaskRecord;

// A message, an error, one of an error's details.
constexpr size_t kMaxTextBytes = 4096;
// An error has one of each kind.
constexpr int kMaxDetails = 2;
// Of a log, where there may be many. LogAllowance says how many.
constexpr size_t kMaxLogLineBytes = 1024;
// A task that workers give back again and again, with no checkpoint in between, makes no headway:
// from then on it waits as after errors. So many in a row a rolling restart of the workers may
// bring.
constexpr int kReturnsAtOnce = 3;

// An error as it is stored, several times for each attempt and in every list of jobs: what people
// read of it, and the details that mean something here.
absl::Status BoundedError(const google::rpc::Status& said) {
  google::rpc::Status kept;
  kept.set_code(said.code());
  kept.set_message(std::string(CutUtf8(said.message(), kMaxTextBytes)));
  for (const google::protobuf::Any& detail : said.details()) {
    const bool known = absl::EndsWith(detail.type_url(), "/google.rpc.ErrorInfo") ||
                       absl::EndsWith(detail.type_url(), "/google.rpc.BadRequest");
    if (known && kept.details_size() < kMaxDetails && detail.ByteSizeLong() <= kMaxTextBytes) {
      *kept.add_details() = detail;
    }
  }
  return FromRpcStatus(kept);
}

HeartbeatResponse Reply(const v1::CompressionJob& job) {
  HeartbeatResponse response;
  response.set_desired_state(
      job.state() == v1::CompressionJob::CANCELLING ? HeartbeatResponse::ABORT
      : job.state() == v1::CompressionJob::PAUSING  ? HeartbeatResponse::RETURN
                                                    : HeartbeatResponse::CONTINUE);
  return response;
}

absl::Status TellOfLinesLeftOut(JobChange& change, int count) {
  if (count == 0) return absl::OkStatus();
  return change.Log(v1::JobEvent::LogLine::WARNING,
                    absl::StrCat(count, " lines of the log left out: an attempt may have ",
                                 LogAllowance::kLinesAMinute, " a minute"));
}

absl::Status StoreLogs(JobChange& change, const LogTurn& turn,
                       const google::protobuf::RepeatedPtrField<v1::JobEvent::LogLine>& logs) {
  RETURN_IF_ERROR(TellOfLinesLeftOut(change, turn.left_out_before));
  for (int i = 0; i < turn.kept; ++i) {
    RETURN_IF_ERROR(change.Log(logs[i].severity() == v1::JobEvent::LogLine::WARNING
                                   ? v1::JobEvent::LogLine::WARNING
                                   : v1::JobEvent::LogLine::INFO,
                               CutUtf8(logs[i].text(), kMaxLogLineBytes)));
  }
  return TellOfLinesLeftOut(change, turn.left_out);
}

// What is left of a checkpoint of which the result now lists the most: the others need no look.
CheckpointFiles NotAmong(
    const google::protobuf::RepeatedPtrField<internal::v1::ArtifactRef>& outputs,
    CheckpointFiles files) {
  std::set<std::string> contents;
  for (const internal::v1::ArtifactRef& output : outputs) contents.insert(output.sha256());
  files.erase(std::remove_if(files.begin(), files.end(),
                             [&](const internal::v1::ArtifactRef& file) {
                               return contents.count(file.sha256()) > 0;
                             }),
              files.end());
  return files;
}

// A worker that does not obey loses the task when the lease ends: it is not renewed.
bool EndsLease(const HeartbeatResponse& response) {
  return response.desired_state() == HeartbeatResponse::ABORT ||
         response.desired_state() == HeartbeatResponse::RETURN;
}

}  // namespace

absl::StatusOr<HeartbeatResponse> TaskReports::CheckLease(const JobName& name, const Lease& lease) {
  HeartbeatResponse response;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& store) -> absl::Status {
    ASSIGN_OR_RETURN(const TaskRecord task, store.GetTask(name, lease.task()));
    if (!IsCurrentLease(task, lease)) return LeaseSuperseded();
    ASSIGN_OR_RETURN(const internal::v1::JobRecord record, store.GetJob(name));
    response = Reply(record.job());
    return absl::OkStatus();
  }));
  return response;
}

absl::StatusOr<HeartbeatResponse> TaskReports::StoreRenewal(const JobName& name,
                                                            const HeartbeatRequest& request,
                                                            bool progress, const LogTurn& logs) {
  const Lease& lease = request.lease();
  const double running = leases_.RunningFraction(name, "");
  const std::optional<HeldLease> held = leases_.Find(lease.token());
  HeartbeatResponse response;
  int64_t renewal_count = 0;
  RETURN_IF_ERROR(store_.Transact([&](StoreTransaction& store) -> absl::Status {
    const ChangeTime now = changes_.Now();
    ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, name, now));
    ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(name, lease.task()));
    if (!IsCurrentLease(task, lease)) return LeaseSuperseded();
    response = Reply(change.job());
    if (EndsLease(response)) return absl::OkStatus();
    if (held) task.set_fraction(held->fraction);
    renewal_count = task.renewal_count() + 1;
    task.set_renewal_count(renewal_count);
    *task.mutable_lease_expire_time() = ToTimestamp(now.wall + options_.lease_duration);
    RETURN_IF_ERROR(store.PutTask(task));
    if (!progress) return absl::OkStatus();
    RETURN_IF_ERROR(StoreLogs(change, logs, request.logs()));
    const v1::Progress& done = change.job().progress();
    RETURN_IF_ERROR(
        change.AdvanceProgress(JobFraction(change.job().stage(), done.completed_trial_count(),
                                           done.trial_count(), running),
                               CutUtf8(request.message(), kMaxTextBytes)));
    return change.Save();
  }));
  if (!EndsLease(response)) {
    leases_.MarkStored(lease.token(), renewal_count, clock_.Monotonic());
    if (progress && held) {
      leases_.MarkTold(lease.token(), held->fraction,
                       std::string(CutUtf8(request.message(), kMaxTextBytes)));
    }
  }
  return response;
}

absl::StatusOr<HeldLease> TaskReports::FindHeld(const Lease& lease) {
  std::optional<HeldLease> held = leases_.Find(lease.token());
  if (!held && store_.shared()) {
    absl::StatusOr<TaskRecord> task = FindLeasedTask(lease);
    if (!task.ok()) return task.status();
    held = ToHeldLease(*task, clock_.Monotonic(), options_.lease_duration);
    leases_.Put(*held);
  }
  if (!held || held->attempt != lease.attempt() || held->task_id != lease.task() ||
      held->job.ToString() != lease.job()) {
    return LeaseSuperseded();
  }
  return *std::move(held);
}

absl::StatusOr<HeartbeatResponse> TaskReports::Heartbeat(const HeartbeatRequest& request) {
  const Lease& lease = request.lease();
  const absl::Duration now = clock_.Monotonic();
  ASSIGN_OR_RETURN(HeldLease held, FindHeld(lease));
  workers_.Hear(held.worker, now);
  leases_.RaiseFraction(lease.token(), std::isfinite(request.fraction()) ? request.fraction() : 0);
  // What had no turn before is news until it is stored.
  held = leases_.Find(lease.token()).value_or(held);
  const std::string message(CutUtf8(request.message(), kMaxTextBytes));
  const bool moved =
      held.fraction > held.told_fraction || (!message.empty() && message != held.told_message);
  bool progress = false;
  const LogTurn logs = leases_.TakeLogs(lease.token(), request.logs_size(), now, /*is_last=*/false);
  if (logs.kept > 0 || logs.left_out_before > 0) {
    progress_.TakeTurn(lease.job(), now);
    progress = true;
  } else {
    progress = moved && progress_.TryTakeTurn(lease.job(), now);
  }
  const bool renewal_due =
      store_.shared() && now - held.stored_at >= StoredRenewalInterval(options_.lease_duration);

  absl::StatusOr<HeartbeatResponse> response = progress || renewal_due
                                                   ? StoreRenewal(held.job, request, progress, logs)
                                                   : CheckLease(held.job, lease);
  if (absl::IsNotFound(response.status())) response = LeaseSuperseded();
  // If that fails it is tried again when the lease ends.
  if (absl::IsDataLoss(response.status())) {
    changes_.SetAside(held.job, held.task_id, held.token).IgnoreError();
    return response;
  }
  if (response.ok() && EndsLease(*response)) return response;
  if (absl::IsAborted(response.status())) {
    leases_.Erase(lease.token());
  } else {
    // Also when the store failed: the worker is alive, and may try again.
    leases_.Renew(lease.token(), now + options_.lease_duration);
  }
  if (response.ok() && progress) watches_.Notify(lease.job());
  return response;
}

absl::Status TaskReports::CheckOutputs(const internal::v1::TaskResult& result) {
  std::set<std::string> paths;
  for (const internal::v1::ArtifactRef& output : result.outputs()) {
    if (!IsArtifactPath(output.path()) || !IsSha256Hex(output.sha256()) ||
        output.size_bytes() < 0 || !paths.insert(output.path()).second) {
      return absl::InternalError(
          absl::StrCat("Output with a bad path, SHA-256 or size, or named twice: \"",
                       CutUtf8(output.path(), 200), "\""));
    }
    const absl::StatusOr<StoredArtifact> stored = artifacts_.Describe(output.sha256());
    if (absl::IsNotFound(stored.status())) {
      return absl::InternalError(absl::StrCat("Output was not uploaded: ", output.path()));
    }
    // Whatever keeps the store from answering, it is not the result's fault.
    if (!stored.ok()) return absl::UnavailableError(stored.status().message());
    // Sizes are added up against quotas.
    if (stored->size_bytes != output.size_bytes()) {
      return absl::InternalError(absl::StrCat("Output ", output.path(), " has ", stored->size_bytes,
                                              " bytes, not ", output.size_bytes()));
    }
  }
  return absl::OkStatus();
}

absl::Duration TaskReports::BackoffAfter(int attempt) {
  absl::Duration backoff = options_.retry_backoff;
  for (int i = 1; i < attempt && backoff < options_.max_retry_backoff; ++i) backoff *= 2;
  constexpr double kRange = 4294967296.0;  // Of 4 random bytes.
  uint32_t random = 0;
  if (!absl::SimpleHexAtoi(ids_.Hex(4), &random)) random = 0;
  return absl::Floor(std::min(backoff, options_.max_retry_backoff) * (1 + 0.5 * random / kRange),
                     absl::Milliseconds(1));
}

absl::Status TaskReports::CompleteTask(const internal::v1::CompleteTaskRequest& request) {
  using Request = internal::v1::CompleteTaskRequest;
  if (request.outcome_case() == Request::OUTCOME_NOT_SET ||
      (request.has_error() && request.error().code() == 0)) {
    return BadRequestError({{"outcome", "must be a result, an error with a code, or a return"}});
  }
  const Lease& lease = request.lease();
  const absl::StatusOr<JobName> name = JobName::Parse(lease.job());
  if (!name.ok()) return BadRequestError({{"lease.job", std::string(name.status().message())}});

  // A removal in a slow storage holds it for long: only who adds files waits for that.
  std::optional<absl::ReaderMutexLock> adding;
  if (request.result().outputs_size() > 0) adding.emplace(&references_.adding());
  absl::Status bad_result;
  if (request.has_result()) {
    bad_result = CheckOutputs(request.result());
    if (absl::IsUnavailable(bad_result)) return bad_result;
  }
  const double running = leases_.RunningFraction(*name, lease.token());
  const LogTurn logs =
      leases_.TakeLogs(lease.token(), request.logs_size(), clock_.Monotonic(), /*is_last=*/true);
  bool completed_now = false;
  CheckpointFiles checkpoint;
  const absl::Status status = changes_.Run(
      *name,
      [&](StoreTransaction& store, JobChange& change, absl::Time now,
          CommitEffects& effects) -> absl::Status {
        completed_now = false;
        checkpoint.clear();
        ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(*name, lease.task()));
        if (!IsCurrentLease(task, lease)) {
          // The same lease completed before, and the reply was lost: the task kept its token.
          const bool repeated = !lease.token().empty() && task.lease_token() == lease.token() &&
                                task.attempt() == lease.attempt();
          return repeated ? absl::OkStatus() : LeaseSuperseded();
        }
        if (store_.shared() && request.has_result() && bad_result.ok()) {
          // Again, with no server removing files: one may have since the look above.
          RETURN_IF_ERROR(store.LockArtifacts(StoreTransaction::ArtifactLock::kAdd));
          bad_result = CheckOutputs(request.result());
          if (absl::IsUnavailable(bad_result)) return bad_result;
        }
        RETURN_IF_ERROR(StoreLogs(change, logs, request.logs()));
        LeaseEnd end{.backoff = BackoffAfter(CountedAttempts(task)),
                     .device_memory_bytes = workers_.DeviceMemoryOf(task.worker())};
        if (request.has_error()) {
          end.error = BoundedError(request.error());
        } else if (request.has_returned()) {
          const int too_many = task.returns_in_row() + 1 - kReturnsAtOnce;
          end = {
              .error = absl::UnavailableError(CutUtf8(request.returned().reason(), kMaxTextBytes)),
              .backoff = too_many > 0 ? BackoffAfter(too_many) : absl::ZeroDuration(),
              .returned = true};
        } else if (!bad_result.ok()) {
          end.error = bad_result;
        } else if (change.job().state() == v1::CompressionJob::CANCELLING) {
          end.error = absl::CancelledError("The job was cancelled");
        } else {
          ASSIGN_OR_RETURN(checkpoint, DropCheckpoint(store, *name, task));
          const absl::Status completed =
              server::CompleteTask(store, change, task, request.result(), running, now);
          if (absl::IsInvalidArgument(completed)) {
            end.error =
                absl::InternalError(absl::StrCat("The worker sent a result that cannot be: ",
                                                 CutUtf8(completed.message(), kMaxTextBytes)));
          } else if (!completed.ok()) {
            return completed;
          }
        }
        if (!end.error.ok()) {
          ASSIGN_OR_RETURN(effects.fate, EndLease(store, change, task, end, now));
        }
        effects.changed = completed_now = true;
        return absl::OkStatus();
      });
  adding.reset();
  if (absl::IsNotFound(status)) return LeaseSuperseded();
  // The same as for a heartbeat.
  if (absl::IsDataLoss(status)) {
    changes_.SetAside(*name, lease.task(), lease.token()).IgnoreError();
  }
  RETURN_IF_ERROR(status);
  if (!completed_now) return absl::OkStatus();
  FreeCheckpoint(references_, NotAmong(request.result().outputs(), std::move(checkpoint)),
                 clock_.Now());
  if (request.has_error()) {
    spdlog::warn("{}/{}: attempt {} ended: {}", lease.job(), lease.task(), lease.attempt(),
                 BoundedError(request.error()).ToString());
  }
  if (const std::optional<HeldLease> held = leases_.Find(lease.token())) {
    workers_.Hear(held->worker, clock_.Monotonic());
    leases_.Erase(lease.token());
  }
  return absl::OkStatus();
}

absl::StatusOr<TaskRecord> TaskReports::FindLeasedTask(const Lease& lease) {
  const absl::StatusOr<JobName> name = JobName::Parse(lease.job());
  if (!name.ok()) return LeaseSuperseded();
  TaskRecord task;
  absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(task, reader.GetTask(*name, lease.task()));
    return absl::OkStatus();
  });
  if (absl::IsNotFound(status)) return LeaseSuperseded();
  RETURN_IF_ERROR(status);
  if (!IsCurrentLease(task, lease)) return LeaseSuperseded();
  return task;
}

}  // namespace qpruner::server
