#include "server/queue/job_pausing.h"

#include <algorithm>
#include <vector>

#include "base/status_macros.h"
#include "server/queue/job_limits.h"

namespace qpruner::server {
namespace {

using internal::v1::TaskRecord;

absl::Status MoveTasks(StoreTransaction& store, const JobChange& change, TaskRecord::State from,
                       TaskRecord::State to) {
  ASSIGN_OR_RETURN(std::vector<TaskRecord> tasks, store.ListTasks(change.name()));
  for (TaskRecord& task : tasks) {
    if (task.state() != from) continue;
    task.set_state(to);
    RETURN_IF_ERROR(store.PutTask(task));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PauseJob(StoreTransaction& store, JobChange& change, absl::Time now) {
  RETURN_IF_ERROR(MoveTasks(store, change, TaskRecord::QUEUED, TaskRecord::HELD));
  *change.record().mutable_pause_time() = ToTimestamp(change.limits_now());
  if (change.job().state() == v1::CompressionJob::PENDING) {
    return change.EnterState(v1::CompressionJob::PAUSED, nullptr);
  }
  RETURN_IF_ERROR(change.EnterState(v1::CompressionJob::PAUSING, nullptr));
  return FinishPause(store, change);
}

absl::Status ResumeJob(StoreTransaction& store, JobChange& change, absl::Time now) {
  RETURN_IF_ERROR(MoveTasks(store, change, TaskRecord::HELD, TaskRecord::QUEUED));
  internal::v1::JobRecord& record = change.record();
  MoveClocks(record, std::max(absl::ZeroDuration(),
                              change.limits_now() - FromTimestamp(record.pause_time())));
  record.clear_pause_time();
  return change.EnterState(
      change.job().has_start_time() ? v1::CompressionJob::RUNNING : v1::CompressionJob::PENDING,
      nullptr);
}

absl::Status FinishPause(StoreTransaction& store, JobChange& change) {
  if (change.job().state() != v1::CompressionJob::PAUSING) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<TaskRecord> tasks, store.ListTasks(change.name()));
  const bool any_leased = std::any_of(tasks.begin(), tasks.end(), [](const TaskRecord& task) {
    return task.state() == TaskRecord::LEASED;
  });
  return any_leased ? absl::OkStatus() : change.EnterState(v1::CompressionJob::PAUSED, nullptr);
}

}  // namespace qpruner::server
