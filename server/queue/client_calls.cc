#include "server/queue/client_calls.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/queue/artifact_model.h"
#include "server/queue/job_not_found.h"
#include "server/queue/job_pausing.h"
#include "server/queue/job_planner.h"
#include "server/queue/job_states.h"
#include "server/queue/task_checkpoints.h"
#include "server/queue/task_transitions.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// What the stages of a job hand to each other: of no use once it is finished.
bool IsIntermediatePath(absl::string_view path) {
  return absl::StartsWith(path, "prepared/") || absl::StartsWith(path, kSourcePrefix) ||
         absl::StartsWith(path, kCheckpointPrefix);
}

// The job that this request made before, if it did. ALREADY_EXISTS: another request had its id.
absl::StatusOr<std::optional<v1::CompressionJob>> FindEarlier(StoreReader& store,
                                                              const NewJob& request) {
  if (request.request_id.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(const std::optional<StoreReader::Request> earlier,
                   store.FindRequest(request.project, request.request_id));
  if (!earlier) return std::nullopt;
  if (earlier->fingerprint != request.fingerprint) {
    return WithErrorInfo(absl::AlreadyExistsError(
                             absl::StrCat("request_id was used for another request, which made ",
                                          earlier->job.ToString(), ": ", request.request_id)),
                         "REQUEST_ID_REUSED", {{"job", earlier->job.ToString()}});
  }
  ASSIGN_OR_RETURN(const internal::v1::JobRecord record, store.GetJob(earlier->job));
  return std::optional<v1::CompressionJob>(record.job());
}

}  // namespace

absl::StatusOr<v1::CompressionJob> ClientCalls::Insert(StoreTransaction& store, const JobName& name,
                                                       const NewJob& request, bool& taken) {
  const ChangeTime change_time = changes_.Now();
  const absl::Time now = change_time.wall;
  internal::v1::JobRecord record;
  v1::CompressionJob& job = *record.mutable_job();
  job = request.job;
  job.set_name(name.ToString());
  job.set_state(v1::CompressionJob::PENDING);
  *job.mutable_create_time() = ToTimestamp(now);
  const std::string& model = job.spec().model().uri();
  if (IsArtifactModel(model)) {
    if (store_.shared()) {
      // The files stay until this job lists them, too.
      RETURN_IF_ERROR(store.LockArtifacts(StoreTransaction::ArtifactLock::kAdd));
    }
    ASSIGN_OR_RETURN(const std::vector<internal::v1::ArtifactRef> files,
                     FindArtifactModel(store, model));
    record.mutable_source_files()->Assign(files.begin(), files.end());
  }
  *record.mutable_waiting_since() = ToTimestamp(change_time.limits);
  absl::StatusOr<JobChange> change = JobChange::Insert(store, name, record, change_time);
  if (absl::IsAlreadyExists(change.status())) {
    taken = true;
    return WithErrorInfo(
        absl::AlreadyExistsError(absl::StrCat("Job already exists: ", name.ToString())),
        "JOB_ALREADY_EXISTS", {{"job", name.ToString()}});
  }
  if (!change.ok()) return change.status();
  if (!request.request_id.empty()) {
    const absl::Status inserted = store.InsertRequest(
        request.project, request.request_id, {.job = name, .fingerprint = request.fingerprint});
    taken = absl::IsAlreadyExists(inserted);
    RETURN_IF_ERROR(inserted);
  }
  for (const internal::v1::ArtifactRef& file : record.source_files()) {
    v1::Artifact artifact;
    artifact.set_name(name.ArtifactName(file.path()));
    artifact.set_size_bytes(file.size_bytes());
    artifact.set_sha256(file.sha256());
    *artifact.mutable_create_time() = ToTimestamp(now);
    RETURN_IF_ERROR(store.PutArtifact(name, artifact));
    AddArtifactBytes(file.size_bytes(), change->record());
  }
  // A new job needs no search: its plan is made on the spot, and committed with it.
  const JobPlan plan = NextTasks(JobView{.record = record}, proposer_);
  for (const PlannedTask& task : plan.tasks) {
    RETURN_IF_ERROR(QueueTask(store, *change, task, now));
  }
  RETURN_IF_ERROR(change->Save());
  return change->job();
}

absl::StatusOr<v1::CompressionJob> ClientCalls::CreateJob(const NewJob& request) {
  const std::string job_id =
      request.job_id.empty() ? absl::StrCat("job-", ids_.Hex(6)) : request.job_id;
  const JobName name{request.project, job_id};
  v1::CompressionJob result;
  bool created = false;
  bool taken = false;
  // A request that made its job before needs no place for it.
  const absl::Status reserved = quotas_.Reserve(request.project);
  if (!reserved.ok()) {
    std::optional<v1::CompressionJob> earlier;
    RETURN_IF_ERROR(store_.Read([&](StoreReader& store) -> absl::Status {
      ASSIGN_OR_RETURN(earlier, FindEarlier(store, request));
      return absl::OkStatus();
    }));
    if (earlier) return *std::move(earlier);
    if (absl::IsResourceExhausted(reserved)) observer_.OnQuotaRefusal(ErrorReason(reserved));
    return reserved;
  }
  const auto create = [&](StoreTransaction& store) -> absl::Status {
    created = taken = false;
    ASSIGN_OR_RETURN(std::optional<v1::CompressionJob> earlier, FindEarlier(store, request));
    if (earlier) {
      result = *std::move(earlier);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(result, Insert(store, name, request, taken));
    created = true;
    return absl::OkStatus();
  };
  std::optional<absl::ReaderMutexLock> adding;
  if (IsArtifactModel(request.job.spec().model().uri())) adding.emplace(&references_.adding());
  absl::Status status = store_.Transact(create);
  // Another server was given the same request at the same time and has just committed it: now it is
  // found.
  if (taken && !request.request_id.empty()) status = store_.Transact(create);
  quotas_.Settle(request.project, status.ok() && created);
  RETURN_IF_ERROR(status);
  if (created) {
    spdlog::info("{}: created", result.name());
    changes_.AfterCommit(name, {.changed = true, .planned = true});
  }
  return result;
}

absl::StatusOr<v1::CompressionJob> ClientCalls::CancelJob(const JobName& name) {
  v1::CompressionJob result;
  const absl::Status status = changes_.Run(
      name,
      [&](StoreTransaction& store, JobChange& change, absl::Time now,
          CommitEffects& effects) -> absl::Status {
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
        result = change.job();
        effects.changed = true;
        return absl::OkStatus();
      });
  if (absl::IsNotFound(status)) return JobNotFound(name);
  RETURN_IF_ERROR(status);
  return result;
}

absl::StatusOr<v1::CompressionJob> ClientCalls::MoveJob(
    const JobName& name, absl::FunctionRef<bool(v1::CompressionJob::State)> is_done,
    absl::FunctionRef<absl::Status(StoreTransaction&, JobChange&, absl::Time)> move,
    absl::string_view verb, absl::string_view reason) {
  v1::CompressionJob result;
  const absl::Status status = changes_.Run(
      name,
      [&](StoreTransaction& store, JobChange& change, absl::Time now,
          CommitEffects& effects) -> absl::Status {
        const v1::CompressionJob::State state = change.job().state();
        if (IsFinal(state) || state == v1::CompressionJob::CANCELLING) {
          return WithErrorInfo(absl::FailedPreconditionError(absl::StrCat(
                                   "Job cannot be ", verb, ": it is ",
                                   v1::CompressionJob::State_Name(state), ": ", name.ToString())),
                               reason, {{"state", v1::CompressionJob::State_Name(state)}});
        }
        if (!is_done(state)) {
          RETURN_IF_ERROR(move(store, change, now));
          effects.changed = true;
        }
        result = change.job();
        return absl::OkStatus();
      });
  if (absl::IsNotFound(status)) return JobNotFound(name);
  RETURN_IF_ERROR(status);
  return result;
}

absl::StatusOr<v1::CompressionJob> ClientCalls::PauseJob(const JobName& name) {
  return MoveJob(
      name,
      [](v1::CompressionJob::State state) {
        return state == v1::CompressionJob::PAUSING || state == v1::CompressionJob::PAUSED;
      },
      &server::PauseJob, "paused", "JOB_NOT_PAUSABLE");
}

absl::StatusOr<v1::CompressionJob> ClientCalls::ResumeJob(const JobName& name) {
  return MoveJob(
      name,
      [](v1::CompressionJob::State state) {
        return state != v1::CompressionJob::PAUSING && state != v1::CompressionJob::PAUSED;
      },
      &server::ResumeJob, "resumed", "JOB_NOT_RESUMABLE");
}

absl::Status ClientCalls::DeleteJob(const JobName& name) {
  std::set<std::string> contents;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    contents.clear();
    ASSIGN_OR_RETURN(const internal::v1::JobRecord record, store.GetJob(name));
    const v1::CompressionJob::State state = record.job().state();
    if (!IsFinal(state)) {
      return WithErrorInfo(absl::FailedPreconditionError(absl::StrCat(
                               "Job is not finished (", v1::CompressionJob::State_Name(state),
                               "); cancel it first: ", name.ToString())),
                           "JOB_NOT_FINISHED", {{"state", v1::CompressionJob::State_Name(state)}});
    }
    ASSIGN_OR_RETURN(const std::vector<v1::Artifact> artifacts, store.ListArtifacts(name));
    for (const v1::Artifact& artifact : artifacts) contents.insert(artifact.sha256());
    return store.DeleteJob(name);
  });
  if (absl::IsNotFound(status)) return JobNotFound(name);
  RETURN_IF_ERROR(status);
  spdlog::info("{}: deleted", name.ToString());
  watches_.Notify(name.ToString());
  RemoveContents(contents);
  return absl::OkStatus();
}

absl::Status ClientCalls::DropIntermediates(const JobName& name) {
  std::set<std::string> contents;
  absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    contents.clear();
    ASSIGN_OR_RETURN(internal::v1::JobRecord record, store.GetJob(name));
    if (!IsFinal(record.job().state())) {
      return absl::FailedPreconditionError(absl::StrCat("Job is not finished: ", name.ToString()));
    }
    ASSIGN_OR_RETURN(const std::vector<v1::Artifact> artifacts, store.ListArtifacts(name));
    for (const v1::Artifact& artifact : artifacts) {
      ASSIGN_OR_RETURN(const ArtifactName parsed, ArtifactName::Parse(artifact.name()));
      if (!IsIntermediatePath(parsed.path)) continue;
      RETURN_IF_ERROR(store.RemoveArtifact(name, parsed.path));
      contents.insert(artifact.sha256());
      if (absl::StartsWith(parsed.path, kCheckpointPrefix)) continue;
      record.set_artifact_bytes(
          std::max<int64_t>(0, record.artifact_bytes() - artifact.size_bytes()));
    }
    record.set_intermediates_dropped(true);
    return store.UpdateJob(record);
  });
  if (absl::IsNotFound(status)) return JobNotFound(name);
  RETURN_IF_ERROR(status);
  if (contents.empty()) return absl::OkStatus();
  spdlog::info("{}: {} intermediate files dropped", name.ToString(), contents.size());
  RemoveContents(contents);
  return absl::OkStatus();
}

void ClientCalls::RemoveContents(const std::set<std::string>& contents) {
  const absl::StatusOr<absl::Time> settled = references_.SettledBefore(clock_.Now());
  if (!settled.ok()) {
    spdlog::warn("{} artifacts wait for the collection: {}", contents.size(),
                 settled.status().ToString());
    return;
  }
  for (const std::string& sha256 : contents) {
    const absl::Status removed = references_.RemoveIfUnreferenced(sha256, *settled).status();
    if (removed.ok()) continue;
    // The others would wait for the same storage, one after the other.
    spdlog::warn("artifacts wait for the collection: {}", removed.ToString());
    return;
  }
}

}  // namespace qpruner::server
