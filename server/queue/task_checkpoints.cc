#include "server/queue/task_checkpoints.h"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/queue/job_states.h"
#include "server/queue/task_transitions.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {

using internal::v1::ArtifactRef;
using internal::v1::SaveCheckpointRequest;
using internal::v1::TaskRecord;

namespace {

bool IsCheckpoint(const ArtifactRef& input) {
  return absl::StartsWith(input.path(), kCheckpointPrefix);
}

CheckpointFiles CheckpointOf(const TaskRecord& task) {
  CheckpointFiles files;
  for (const ArtifactRef& input : task.spec().inputs()) {
    if (IsCheckpoint(input)) files.push_back(input);
  }
  return files;
}

// Those of `files` that `others` do not have: path, content and size.
template <typename Files, typename Others>
CheckpointFiles Without(const Files& files, const Others& others) {
  std::map<std::string, const ArtifactRef*> by_path;
  for (const ArtifactRef& other : others) by_path[other.path()] = &other;
  CheckpointFiles rest;
  for (const ArtifactRef& file : files) {
    const auto found = by_path.find(file.path());
    if (found == by_path.end() || found->second->sha256() != file.sha256() ||
        found->second->size_bytes() != file.size_bytes()) {
      rest.push_back(file);
    }
  }
  return rest;
}

absl::Status CheckFiles(const SaveCheckpointRequest& request) {
  if (request.ref().empty() || request.ref_size() > kMaxCheckpointFiles) {
    return BadRequestError(
        {{"ref", absl::StrCat("must have 1 to ", kMaxCheckpointFiles, " entries")}});
  }
  std::set<std::string> paths;
  for (int i = 0; i < request.ref_size(); ++i) {
    const ArtifactRef& ref = request.ref(i);
    const std::string at = absl::StrCat("ref[", i, "]");
    if (!IsArtifactPath(ref.path()) || !IsCheckpoint(ref)) {
      return BadRequestError(
          {{absl::StrCat(at, ".path"), absl::StrCat("must be a path below ", kCheckpointPrefix)}});
    }
    if (!paths.insert(ref.path()).second) {
      return BadRequestError({{absl::StrCat(at, ".path"), "is named twice"}});
    }
    if (!IsSha256Hex(ref.sha256()) || ref.size_bytes() < 0) {
      return BadRequestError({{at, "needs the file's SHA-256 and size"}});
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckpointFiles> DropCheckpoint(StoreTransaction& store, const JobName& job,
                                               TaskRecord& task) {
  CheckpointFiles dropped = CheckpointOf(task);
  for (const ArtifactRef& file : dropped) {
    RETURN_IF_ERROR(store.RemoveArtifact(job, file.path()));
  }
  google::protobuf::RepeatedPtrField<ArtifactRef> inputs;
  for (ArtifactRef& input : *task.mutable_spec()->mutable_inputs()) {
    if (!IsCheckpoint(input)) *inputs.Add() = std::move(input);
  }
  task.mutable_spec()->mutable_inputs()->Swap(&inputs);
  return dropped;
}

absl::Status TaskCheckpoints::Save(const SaveCheckpointRequest& request) {
  RETURN_IF_ERROR(CheckFiles(request));
  const absl::StatusOr<JobName> name = JobName::Parse(request.lease().job());
  if (!name.ok()) return LeaseSuperseded();

  CheckpointFiles dropped;
  if (absl::Status status = Replace(*name, request, dropped); !status.ok()) {
    return absl::IsNotFound(status) ? LeaseSuperseded() : status;
  }
  FreeCheckpoint(references_, dropped, clock_.Now());
  return absl::OkStatus();
}

absl::Status TaskCheckpoints::CheckUploaded(const CheckpointFiles& files) {
  for (const ArtifactRef& file : files) {
    const absl::StatusOr<StoredArtifact> stored = artifacts_.Describe(file.sha256());
    if (absl::IsNotFound(stored.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat("Checkpoint was not uploaded: ", file.path()));
    }
    RETURN_IF_ERROR(stored.status());
    if (stored->size_bytes != file.size_bytes()) {
      return BadRequestError(
          {{"ref.size_bytes", absl::StrCat("of ", file.path(), " must be ", stored->size_bytes,
                                           ", the file's size, is ", file.size_bytes())}});
    }
  }
  return absl::OkStatus();
}

absl::Status TaskCheckpoints::Replace(const JobName& name, const SaveCheckpointRequest& request,
                                      CheckpointFiles& dropped) {
  absl::ReaderMutexLock adding(&references_.adding());
  // Asking the storage takes long: not in an unshared store's transaction, and not for what the job
  // lists, which is kept.
  CheckpointFiles looked_for;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& store) -> absl::Status {
    ASSIGN_OR_RETURN(const TaskRecord task, store.GetTask(name, request.lease().task()));
    if (!IsCurrentLease(task, request.lease())) return LeaseSuperseded();
    looked_for = Without(request.ref(), CheckpointOf(task));
    return absl::OkStatus();
  }));
  RETURN_IF_ERROR(CheckUploaded(looked_for));
  return store_.Transact([&](StoreTransaction& store) -> absl::Status {
    dropped.clear();
    ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(name, request.lease().task()));
    if (!IsCurrentLease(task, request.lease())) return LeaseSuperseded();
    const CheckpointFiles before = CheckpointOf(task);
    const CheckpointFiles added = Without(request.ref(), before);
    if (store_.shared()) {
      // Again, with no server removing files: one may have since the look above.
      RETURN_IF_ERROR(store.LockArtifacts(StoreTransaction::ArtifactLock::kAdd));
      RETURN_IF_ERROR(CheckUploaded(added));
    } else if (!Without(added, looked_for).empty()) {
      return absl::UnavailableError("Another checkpoint of the task was saved meanwhile");
    }
    dropped = Without(before, request.ref());
    if (added.empty() && dropped.empty()) return absl::OkStatus();
    for (const ArtifactRef& file : dropped) {
      RETURN_IF_ERROR(store.RemoveArtifact(name, file.path()));
    }
    for (const ArtifactRef& file : added) {
      v1::Artifact artifact;
      artifact.set_name(name.ArtifactName(file.path()));
      artifact.set_size_bytes(file.size_bytes());
      artifact.set_sha256(file.sha256());
      *artifact.mutable_create_time() = ToTimestamp(clock_.Now());
      RETURN_IF_ERROR(store.PutArtifact(name, artifact));
    }
    google::protobuf::RepeatedPtrField<ArtifactRef> inputs;
    for (ArtifactRef& input : *task.mutable_spec()->mutable_inputs()) {
      if (!IsCheckpoint(input)) *inputs.Add() = std::move(input);
    }
    inputs.MergeFrom(request.ref());
    task.mutable_spec()->mutable_inputs()->Swap(&inputs);
    task.clear_returns_in_row();
    return store.PutTask(task);
  });
}

void FreeCheckpoint(ArtifactReferences& references, const CheckpointFiles& dropped,
                    absl::Time now) {
  std::set<std::string> outputs, others;
  for (const ArtifactRef& file : dropped) {
    (absl::StartsWith(file.path(), kCheckpointOutputsPrefix) ? outputs : others)
        .insert(file.sha256());
  }
  // A checkpoint that another attempt of equal work is about to save may go with it: that costs
  // time, no result.
  for (const std::string& sha256 : others) references.TryRemove(sha256, absl::InfiniteFuture());
  if (outputs.empty()) return;
  // These may be outputs that such an attempt is about to complete its task with.
  const absl::StatusOr<absl::Time> settled = references.SettledBefore(now);
  if (!settled.ok()) {
    spdlog::warn("{} artifacts wait for the collection: {}", outputs.size(),
                 settled.status().ToString());
    return;
  }
  for (const std::string& sha256 : outputs) references.TryRemove(sha256, *settled);
}

}  // namespace qpruner::server
