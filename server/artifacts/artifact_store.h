// Where artifacts' bytes live, by content.
#ifndef QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_
#define QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::server {

// Receives one artifact. Not thread-safe. Destroyed without Commit: nothing is kept.
class ArtifactWriter {
 public:
  virtual ~ArtifactWriter() = default;
  // RESOURCE_EXHAUSTED: disk full, or more bytes than announced.
  virtual absl::Status Append(absl::string_view data) = 0;
  // Checks size and SHA-256 (DATA_LOSS) and makes the artifact durable and readable.
  virtual absl::Status Commit() = 0;
};

// Reads one artifact. Not thread-safe.
class ArtifactReader {
 public:
  virtual ~ArtifactReader() = default;
  virtual int64_t size_bytes() const = 0;
  // Up to `max_bytes` from `offset`; fewer only at the end.
  virtual absl::StatusOr<std::string> Read(int64_t offset, int64_t max_bytes) = 0;
};

// Content-addressed and immutable: the name of an artifact is its SHA-256. Thread-safe.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;
  // INVALID_ARGUMENT: not a SHA-256. Storing content that is there already succeeds.
  virtual absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(const std::string& sha256,
                                                                 int64_t size_bytes) = 0;
  // NOT_FOUND; INVALID_ARGUMENT.
  virtual absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& sha256) = 0;
  virtual absl::StatusOr<bool> Contains(const std::string& sha256) = 0;
  // Removing what is not there succeeds.
  virtual absl::Status Remove(const std::string& sha256) = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_
