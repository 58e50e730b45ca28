// Where artifacts' bytes live, by content.
#ifndef QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_
#define QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace qpruner::server {

// The largest artifact, 1 TiB: more than the weights of 400 billion parameters in 16 bits. S3 takes
// 5 TiB, but then each of an object's 10,000 parts, which a writer collects in memory, would be
// half a gigabyte; so it is a tenth.
inline constexpr int64_t kMaxArtifactBytes = int64_t{1} << 40;

// What is stored of an artifact, without its bytes.
struct StoredArtifact {
  std::string sha256;
  int64_t size_bytes = 0;
  // When its content was stored last: storing it again renews it.
  absl::Time store_time;
};

// Where one artifact's bytes may be read without this server.
struct ArtifactUrl {
  // Whoever has it may read: a secret. http or https; understands Range.
  std::string url;
  // When the storage begins to refuse it.
  absl::Time expire_time;
};

// Where one artifact's bytes may be stored without this server, with one PUT.
struct ArtifactUploadUrl {
  // Whoever has it may store this artifact: a secret.
  std::string url;
  // To be sent with it as they are.
  std::map<std::string, std::string> headers;
  absl::Time expire_time;
};

// Receives one artifact. Not thread-safe. Destroyed without Commit: nothing is kept.
class ArtifactWriter {
 public:
  virtual ~ArtifactWriter() = default;
  // RESOURCE_EXHAUSTED: more bytes than announced. After an error only the destructor may be
  // called.
  virtual absl::Status Append(absl::string_view data) = 0;
  // Checks size and SHA-256 (DATA_LOSS) and makes the artifact durable and readable. Call once,
  // last.
  virtual absl::Status Commit() = 0;
};

// Reads one artifact. One that is removed meanwhile is read on, or NOT_FOUND. Not thread-safe.
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
// Every call blocks, for as long as a disk or a network takes: never call it from a thread that
// others wait for (gRPC's callbacks, the job store's transactions of an unshared store).
// UNAVAILABLE, of any call, also of writers and readers: the storage is full, cannot be reached or
// fails, after retries of its own; try again.
//
// The store knows no references. Who removes what no job refers to must see to it that no job
// starts to refer to it in between.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;
  // Storing content that is there already succeeds, and repairs it if it was damaged.
  // INVALID_ARGUMENT: not a SHA-256, a size that is negative or above kMaxArtifactBytes.
  virtual absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(const std::string& sha256,
                                                                 int64_t size_bytes) = 0;
  // NOT_FOUND; INVALID_ARGUMENT.
  virtual absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& sha256) = 0;
  // Reads all of it. DATA_LOSS: the stored content has changed. NOT_FOUND; INVALID_ARGUMENT.
  absl::Status Verify(const std::string& sha256);
  absl::StatusOr<bool> Contains(const std::string& sha256);
  // A URL of the artifact, for somebody who may read it; none: all reads go through this store.
  // Does not block, and does not look whether the artifact is there. REQUIRES: a SHA-256.
  virtual std::optional<ArtifactUrl> MakeUrl(const std::string& sha256) {
    (void)sha256;
    return std::nullopt;
  }
  // The same for storing it: the storage refuses other content than this, and has it durable and
  // readable when it answers with success. None also where one PUT is not enough.
  virtual std::optional<ArtifactUploadUrl> MakeUploadUrl(const std::string& sha256,
                                                         int64_t size_bytes) {
    (void)sha256, (void)size_bytes;
    return std::nullopt;
  }
  // NOT_FOUND; INVALID_ARGUMENT.
  virtual absl::StatusOr<StoredArtifact> Describe(const std::string& sha256) = 0;
  // Shows every artifact to `visit`, in no order, without holding them all in memory. What is
  // stored or removed meanwhile may be shown or not. An error of `visit` ends the listing and is
  // returned.
  virtual absl::Status List(
      absl::FunctionRef<absl::Status(const StoredArtifact& artifact)> visit) = 0;
  // Removes what writers that never came to an end have left, where that takes space; only of those
  // that began before `before`, and never of a live writer of this or another process that does.
  virtual absl::Status RemoveAbandonedWrites(absl::Time before) = 0;
  // Removing what is not there succeeds.
  virtual absl::Status Remove(const std::string& sha256) = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_H_
