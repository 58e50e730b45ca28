// Artifacts in a local folder: objects/ab/cdef... by SHA-256.
//
// Content is written aside (incoming/), checked, synced and renamed into place, so an object is
// either whole and durable or not there. Objects are read-only files; a process on the same file
// system may open or link them by their path, but must not write to them.
#ifndef QPRUNER_SERVER_ARTIFACTS_LOCAL_ARTIFACT_STORE_H_
#define QPRUNER_SERVER_ARTIFACTS_LOCAL_ARTIFACT_STORE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

struct LocalArtifactStoreOptions {
  // Created if it is not there.
  std::string folder;
  // Several servers use the folder at the same time, on one file system that they all see and that
  // renames atomically.
  bool shared = false;
  // Tells when artifacts were stored.
  Clock& clock = RealClock();
};

// Removes what unfinished writes of processes that are gone left. FAILED_PRECONDITION: another
// process has the folder open, and not both of them share it. Other codes: it cannot be used.
// Writers and readers must be destroyed before the store.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(
    LocalArtifactStoreOptions options);

// Where the store in `folder` keeps this content. `sha256` must be one (IsSha256Hex).
std::string LocalArtifactPath(const std::string& folder, absl::string_view sha256);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_LOCAL_ARTIFACT_STORE_H_
