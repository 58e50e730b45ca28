#include "server/queue/artifact_references.h"

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {

namespace {

absl::Status TryRemove(JobStore& store, ArtifactStore& artifacts, const std::string& sha256) {
  if (store.shared()) {
    return store.Transact([&](StoreTransaction& transaction) -> absl::Status {
      RETURN_IF_ERROR(transaction.LockArtifacts(StoreTransaction::ArtifactLock::kRemove));
      ASSIGN_OR_RETURN(const bool referenced, transaction.IsArtifactReferenced(sha256));
      return referenced ? absl::OkStatus() : artifacts.Remove(sha256);
    });
  }
  bool referenced = true;
  RETURN_IF_ERROR(store.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(referenced, reader.IsArtifactReferenced(sha256));
    return absl::OkStatus();
  }));
  return referenced ? absl::OkStatus() : artifacts.Remove(sha256);
}

}  // namespace

void RemoveIfUnreferenced(JobStore& store, ArtifactStore& artifacts, const std::string& sha256) {
  if (const absl::Status removed = TryRemove(store, artifacts, sha256); !removed.ok()) {
    spdlog::warn("artifact {} was not removed: {}", sha256, removed.ToString());
  }
}

}  // namespace qpruner::server
