// Artifacts in a local folder: objects/ab/cdef... by SHA-256.
//
// Content is written aside, checked, synced and renamed into place, so an object is either whole
// and durable or not there. Objects are read-only files: a worker on the same file system may open
// them by PathOf, but must not write to them.
#ifndef QPRUNER_SERVER_ARTIFACTS_LOCAL_ARTIFACT_STORE_H_
#define QPRUNER_SERVER_ARTIFACTS_LOCAL_ARTIFACT_STORE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

struct LocalArtifactStoreOptions {
  // Created if it is not there.
  std::string folder;
};

// FAILED_PRECONDITION: another process has the folder open. Other codes: it cannot be used.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(
    LocalArtifactStoreOptions options);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_LOCAL_ARTIFACT_STORE_H_
