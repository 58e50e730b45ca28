// What attempts leave for the next one: files among the task's inputs, below "checkpoint/".
//
// The job lists them like artifacts (without telling watchers), so that deleting the job, or the
// task's completion, frees them, and equal content of two jobs is kept as long as one of them lists
// it.
#ifndef QPRUNER_SERVER_QUEUE_TASK_CHECKPOINTS_H_
#define QPRUNER_SERVER_QUEUE_TASK_CHECKPOINTS_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/artifact_references.h"
#include "server/store/job_store.h"

namespace qpruner::server {

inline constexpr absl::string_view kCheckpointPrefix = "checkpoint/";
// Content that the task's result will list, too.
inline constexpr absl::string_view kCheckpointOutputsPrefix = "checkpoint/outputs/";
// Of one checkpoint: several times the blocks of any model. They are a part of the task's record,
// which every lease and renewal writes.
inline constexpr int kMaxCheckpointFiles = 1024;

using CheckpointFiles = std::vector<internal::v1::ArtifactRef>;

// Takes the task's checkpoint from its inputs and from the job's list. Returns its files. `task` is
// not stored.
absl::StatusOr<CheckpointFiles> DropCheckpoint(StoreTransaction& store, const JobName& job,
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
  // FAILED_PRECONDITION: one of them was not uploaded. INVALID_ARGUMENT: one has another size.
  absl::Status CheckUploaded(const CheckpointFiles& files);
  // Stores the new one in place of an earlier one; `dropped` are the files that only that had.
  // NOT_FOUND: no such task.
  absl::Status Replace(const JobName& name, const internal::v1::SaveCheckpointRequest& request,
                       CheckpointFiles& dropped);

  JobStore& store_;
  ArtifactStore& artifacts_;
  ArtifactReferences& references_;
  Clock& clock_;
};

// Removes the content of files that were dropped, unless a job lists it. What must wait is left to
// the collection. Do not hold references.adding().
void FreeCheckpoint(ArtifactReferences& references, const CheckpointFiles& dropped, absl::Time now);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TASK_CHECKPOINTS_H_
