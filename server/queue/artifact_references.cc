#include "server/queue/artifact_references.h"

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "server/queue/job_change.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {

namespace {

// Between the clocks of servers, and of a store of files.
constexpr absl::Duration kClockSkew = absl::Minutes(1);

}  // namespace

absl::StatusOr<absl::Time> ArtifactReferences::SettledBefore(absl::Time now) {
  std::vector<internal::v1::TaskRecord> leased;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(leased, reader.LeasedTasks());
    return absl::OkStatus();
  }));
  absl::Time settled = now;
  for (const internal::v1::TaskRecord& task : leased) {
    settled = std::min(settled, FromTimestamp(task.start_time()) - kClockSkew);
  }
  return settled;
}

absl::StatusOr<bool> ArtifactReferences::RemoveIfUnreferenced(const std::string& sha256,
                                                              absl::Time stored_until) {
  absl::MutexLock lock(&mutex_);
  int64_t removed_bytes = -1;
  bool referenced = true;
  const auto look = [&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(referenced, reader.IsArtifactReferenced(sha256));
    return absl::OkStatus();
  };
  const auto remove = [&]() -> absl::Status {
    removed_bytes = -1;
    if (referenced) return absl::OkStatus();
    const absl::StatusOr<StoredArtifact> stored = artifacts_.Describe(sha256);
    if (absl::IsNotFound(stored.status())) return absl::OkStatus();
    RETURN_IF_ERROR(stored.status());
    if (stored->store_time > stored_until) return absl::OkStatus();
    RETURN_IF_ERROR(artifacts_.Remove(sha256));
    removed_bytes = stored->size_bytes;
    return absl::OkStatus();
  };
  if (store_.shared()) {
    RETURN_IF_ERROR(store_.Transact([&](StoreTransaction& transaction) -> absl::Status {
      RETURN_IF_ERROR(transaction.LockArtifacts(StoreTransaction::ArtifactLock::kRemove));
      RETURN_IF_ERROR(look(transaction));
      return remove();
    }));
  } else {
    RETURN_IF_ERROR(store_.Read(look));
    RETURN_IF_ERROR(remove());
  }
  if (removed_bytes < 0) return false;
  observer_.OnArtifactRemoved(removed_bytes);
  return true;
}

void ArtifactReferences::TryRemove(const std::string& sha256, absl::Time stored_until) {
  if (const auto removed = RemoveIfUnreferenced(sha256, stored_until); !removed.ok()) {
    spdlog::warn("artifact {} was not removed: {}", sha256, removed.status().ToString());
  }
}

}  // namespace qpruner::server
