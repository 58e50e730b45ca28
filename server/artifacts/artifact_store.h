// Where artifacts' bytes live, by content.
#ifndef QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_
#define QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::server {

// Receives one artifact. Not thread-safe. Destroyed without Commit: nothing is kept.
class ArtifactWriter {
 public:
  virtual ~ArtifactWriter() = default;
  // RESOURCE_EXHAUSTED: disk full, or more bytes than announced. After an error only the destructor
  // may be called.
  virtual absl::Status Append(absl::string_view data) = 0;
  // Checks size and SHA-256 (DATA_LOSS) and makes the artifact durable and readable. Call once,
  // last.
  virtual absl::Status Commit() = 0;
};

// Reads one artifact, also one that is removed meanwhile. Not thread-safe.
class ArtifactReader {
 public:
  virtual ~ArtifactReader() = default;
  virtual int64_t size_bytes() const = 0;
  // Up to `max_bytes` from `offset`; fewer only at the end, none beyond it. Reads that follow one
  // another from 0 to the end are checked against the SHA-256: the last of them gives DATA_LOSS if
  // the stored content has changed. INVALID_ARGUMENT: negative numbers.
  virtual absl::StatusOr<std::string> Read(int64_t offset, int64_t max_bytes) = 0;
};

// Content-addressed and immutable: the name of an artifact is its SHA-256. Thread-safe.
//
// The store knows no references. Who removes what no job refers to must see to it that no job
// starts to refer to it in between.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;
  // Storing content that is there already succeeds, and repairs it if it was damaged.
  // INVALID_ARGUMENT: not a SHA-256, negative size. RESOURCE_EXHAUSTED: disk full.
  virtual absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(const std::string& sha256,
                                                                 int64_t size_bytes) = 0;
  // NOT_FOUND; INVALID_ARGUMENT.
  virtual absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& sha256) = 0;
  // Reads all of it. DATA_LOSS: the stored content has changed. NOT_FOUND; INVALID_ARGUMENT.
  virtual absl::Status Verify(const std::string& sha256) = 0;
  virtual absl::StatusOr<bool> Contains(const std::string& sha256) = 0;
  // Removing what is not there succeeds.
  virtual absl::Status Remove(const std::string& sha256) = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_
