// What attempts leave for the next one: a file among the task's inputs, below "checkpoint/".
//
// The job lists it like an artifact (without telling watchers), so that deleting the job, or the
// task's completion, frees it, and equal content of two jobs is kept as long as one of them lists
// it.
#ifndef QPRUNER_SERVER_QUEUE_TASK_CHECKPOINTS_H_
#define QPRUNER_SERVER_QUEUE_TASK_CHECKPOINTS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/artifact_references.h"
#include "server/store/job_store.h"

namespace qpruner::server {

inline constexpr absl::string_view kCheckpointPrefix = "checkpoint/";

// Takes the task's checkpoint from its inputs and from the job's list. Returns its SHA-256; empty
// if there is none. `task` is not stored.
absl::StatusOr<std::string> DropCheckpoint(StoreTransaction& store, const JobName& job,
                                           internal::v1::TaskRecord& task);

// Thread-safe.
class TaskCheckpoints {
 public:
  TaskCheckpoints(JobStore& store, ArtifactStore& artifacts, ArtifactReferences& references,
                  Clock& clock)
      : store_(store), artifacts_(artifacts), references_(references), clock_(clock) {}

  // As JobQueue::SaveCheckpoint.
  absl::Status Save(const internal::v1::SaveCheckpointRequest& request);

 private:
  // Stores the new one in place of an earlier one, whose SHA-256 `before` tells. NOT_FOUND: no such
  // task.
  absl::Status Replace(const JobName& name, const internal::v1::SaveCheckpointRequest& request,
                       std::string& before);

  // The store has the file, with that size.
  absl::Status CheckStored(const internal::v1::ArtifactRef& ref);

  JobStore& store_;
  ArtifactStore& artifacts_;
  ArtifactReferences& references_;
  Clock& clock_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TASK_CHECKPOINTS_H_
