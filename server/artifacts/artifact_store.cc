#include "server/artifacts/artifact_store.h"

#include "base/status_macros.h"

namespace qpruner::server {

absl::Status ArtifactStore::Verify(const std::string& sha256) {
  constexpr int64_t kChunk = 1 << 20;
  ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactReader> reader, Open(sha256));
  int64_t offset = 0;
  do {
    ASSIGN_OR_RETURN(const std::string data, reader->Read(offset, kChunk));
    offset += static_cast<int64_t>(data.size());
  } while (offset < reader->size_bytes());
  return absl::OkStatus();
}

absl::StatusOr<bool> ArtifactStore::Contains(const std::string& sha256) {
  const absl::StatusOr<StoredArtifact> stored = Describe(sha256);
  if (absl::IsNotFound(stored.status())) return false;
  RETURN_IF_ERROR(stored.status());
  return true;
}

}  // namespace qpruner::server
