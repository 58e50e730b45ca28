// What every artifact store checks about names and bytes.
#ifndef QPRUNER_SERVER_ARTIFACTS_ARTIFACT_CONTENT_H_
#define QPRUNER_SERVER_ARTIFACTS_ARTIFACT_CONTENT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/sha256.h"

namespace qpruner::server {

// INVALID_ARGUMENT: not a SHA-256.
absl::Status CheckArtifactName(const std::string& sha256);
absl::Status ArtifactNotStored(absl::string_view sha256);
absl::Status ArtifactDamaged(absl::string_view sha256, absl::string_view how);
// What a disk or an object storage said, as ArtifactStore tells it: whatever it is (full, failing,
// away, a key that has just been changed), it is not the caller's fault, and somebody may mend it
// while the caller tries again. UNAVAILABLE; OK stays OK.
absl::Status StorageFailed(const absl::Status& said);
// The same, of errno.
absl::Status StorageFailed(int error, absl::string_view what);

// Holds what is written against what was announced. Not thread-safe.
class AnnouncedContent {
 public:
  // INVALID_ARGUMENT: not a SHA-256, a size that is negative or above kMaxArtifactBytes.
  static absl::Status Check(const std::string& sha256, int64_t size_bytes);
  AnnouncedContent(std::string sha256, int64_t size_bytes);

  // RESOURCE_EXHAUSTED: more bytes than announced; they do not count.
  absl::Status Add(absl::string_view data);
  // DATA_LOSS: too few bytes, or others. Call once, last.
  absl::Status Finish();

  const std::string& sha256() const { return sha256_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  const std::string sha256_;
  const int64_t size_bytes_;
  int64_t written_ = 0;
  Sha256 hash_;
};

// Hashes along as long as reads follow one another from the beginning. Not thread-safe.
class SequentialReadCheck {
 public:
  SequentialReadCheck(std::string sha256, int64_t size_bytes);

  // DATA_LOSS: this was the end, and the content is not what its name says.
  absl::Status Add(int64_t offset, absl::string_view data);

 private:
  const std::string sha256_;
  const int64_t size_bytes_;
  Sha256 hash_;
  int64_t hashed_ = 0;
  bool checked_ = false;
};

// INVALID_ARGUMENT: a negative number.
absl::Status CheckReadRange(int64_t offset, int64_t max_bytes);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_ARTIFACT_CONTENT_H_
