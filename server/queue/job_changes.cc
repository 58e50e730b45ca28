#include "server/queue/job_changes.h"

#include <string>
#include <utility>

#include "base/status_macros.h"
#include "server/queue/job_states.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {

absl::Status JobChanges::Run(const JobName& name, Body body) {
  CommitEffects effects;
  RETURN_IF_ERROR(store_.Transact([&](StoreTransaction& store) -> absl::Status {
    effects = {};
    const ChangeTime now = Now();
    ASSIGN_OR_RETURN(JobChange change, JobChange::Load(store, name, now));
    RETURN_IF_ERROR(body(store, change, now.wall, effects));
    if (!effects.changed) return absl::OkStatus();
    if (IsFinal(change.job().state())) effects.finished = change.job().state();
    return change.Save();
  }));
  if (effects.changed) AfterCommit(name, effects);
  return absl::OkStatus();
}

absl::Status JobChanges::SetAside(const JobName& name, const std::string& task_id,
                                  const std::string& token) {
  const absl::Status status = store_.Transact([&](StoreTransaction& store) -> absl::Status {
    absl::StatusOr<internal::v1::TaskRecord> task = store.GetTask(name, task_id);
    // One that cannot be read itself is in no list: nobody gets it.
    if (absl::IsDataLoss(task.status()) || absl::IsNotFound(task.status())) return absl::OkStatus();
    RETURN_IF_ERROR(task.status());
    using internal::v1::TaskRecord;
    const bool is_current =
        token.empty() ? task->state() == TaskRecord::QUEUED
                      : task->state() == TaskRecord::LEASED && task->lease_token() == token;
    if (!is_current) return absl::OkStatus();
    return server::SetAside(store, *std::move(task), clock_.Now());
  });
  RETURN_IF_ERROR(status);
  leases_.Erase(token);
  work_.Wake();
  return absl::OkStatus();
}

void JobChanges::AfterCommit(const JobName& name, const CommitEffects& effects) {
  const std::string job = name.ToString();
  if (effects.finished) {
    // A failed job takes its other leases with it: their next call gets ABORTED.
    leases_.EraseJob(name);
    progress_.Forget(job);
    work_.Wake();
  } else if (effects.planned) {
    // There may be a worker that waits for it.
    work_.Wake();
  } else {
    work_.MarkDirty(job);
  }
  if (effects.fate == TaskFate::kRetried) observer_.OnTaskRetried();
  if (effects.finished) {
    spdlog::info("{}: {}", job, v1::CompressionJob::State_Name(*effects.finished));
    observer_.OnJobFinished(*effects.finished);
  }
  watches_.Notify(job);
}

}  // namespace qpruner::server
