#include "server/queue/task_checkpoints.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/queue/job_states.h"
#include "server/queue/task_transitions.h"

namespace qpruner::server {

using internal::v1::ArtifactRef;
using internal::v1::TaskRecord;

absl::StatusOr<std::string> DropCheckpoint(StoreTransaction& store, const JobName& job,
                                           TaskRecord& task) {
  auto& inputs = *task.mutable_spec()->mutable_inputs();
  const auto found = std::find_if(inputs.begin(), inputs.end(), [](const ArtifactRef& input) {
    return absl::StartsWith(input.path(), kCheckpointPrefix);
  });
  if (found == inputs.end()) return std::string();
  std::string sha256 = found->sha256();
  RETURN_IF_ERROR(store.RemoveArtifact(job, found->path()));
  inputs.erase(found);
  return sha256;
}

absl::Status TaskCheckpoints::Save(const internal::v1::SaveCheckpointRequest& request) {
  const ArtifactRef& ref = request.ref();
  if (!IsArtifactPath(ref.path()) || !absl::StartsWith(ref.path(), kCheckpointPrefix)) {
    return BadRequestError(
        {{"ref.path", absl::StrCat("must be a path below ", kCheckpointPrefix)}});
  }
  if (!IsSha256Hex(ref.sha256()) || ref.size_bytes() < 0) {
    return BadRequestError({{"ref", "needs the file's SHA-256 and size"}});
  }
  const absl::StatusOr<JobName> name = JobName::Parse(request.lease().job());
  if (!name.ok()) return LeaseSuperseded();

  std::string before;
  if (absl::Status status = Replace(*name, request, before); !status.ok()) {
    return absl::IsNotFound(status) ? LeaseSuperseded() : status;
  }
  // A checkpoint that another attempt of equal work is about to save may go with it: that costs
  // time, no result.
  if (!before.empty()) references_.TryRemove(before, absl::InfiniteFuture());
  return absl::OkStatus();
}

absl::Status TaskCheckpoints::CheckStored(const ArtifactRef& ref) {
  const absl::StatusOr<StoredArtifact> stored = artifacts_.Describe(ref.sha256());
  if (absl::IsNotFound(stored.status())) {
    return absl::FailedPreconditionError(absl::StrCat("Checkpoint was not uploaded: ", ref.path()));
  }
  RETURN_IF_ERROR(stored.status());
  if (stored->size_bytes == ref.size_bytes()) return absl::OkStatus();
  return BadRequestError(
      {{"ref.size_bytes",
        absl::StrCat("must be ", stored->size_bytes, ", the file's size, is ", ref.size_bytes())}});
}

absl::Status TaskCheckpoints::Replace(const JobName& name,
                                      const internal::v1::SaveCheckpointRequest& request,
                                      std::string& before) {
  const ArtifactRef& ref = request.ref();
  absl::ReaderMutexLock adding(&references_.adding());
  RETURN_IF_ERROR(CheckStored(ref));
  return store_.Transact([&](StoreTransaction& store) -> absl::Status {
    ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(name, request.lease().task()));
    if (!IsCurrentLease(task, request.lease())) return LeaseSuperseded();
    if (store_.shared()) {
      // Again, with no server removing files: one may have since the look above.
      RETURN_IF_ERROR(store.LockArtifacts(StoreTransaction::ArtifactLock::kAdd));
      RETURN_IF_ERROR(CheckStored(ref));
    }
    ASSIGN_OR_RETURN(before, DropCheckpoint(store, name, task));
    *task.mutable_spec()->add_inputs() = ref;
    task.clear_returns_in_row();
    v1::Artifact artifact;
    artifact.set_name(name.ArtifactName(ref.path()));
    artifact.set_size_bytes(ref.size_bytes());
    artifact.set_sha256(ref.sha256());
    *artifact.mutable_create_time() = ToTimestamp(clock_.Now());
    RETURN_IF_ERROR(store.PutArtifact(name, artifact));
    return store.PutTask(task);
  });
}

}  // namespace qpruner::server
