#include "server/artifacts/artifact_content.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

absl::Status CheckArtifactName(const std::string& sha256) {
  if (IsSha256Hex(sha256)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("An artifact is named by the 64 lower-case hexadecimal digits of its SHA-256, "
                   "not by \"",
                   CutUtf8(sha256, 100), "\""));
}

absl::Status ArtifactNotStored(absl::string_view sha256) {
  return absl::NotFoundError(absl::StrCat("Artifact not stored: ", sha256));
}

absl::Status StorageFailed(const absl::Status& said) {
  return said.ok() ? said : absl::UnavailableError(said.message());
}

absl::Status StorageFailed(int error, absl::string_view what) {
  return StorageFailed(absl::ErrnoToStatus(error, what));
}

absl::Status ArtifactDamaged(absl::string_view sha256, absl::string_view how) {
  return absl::DataLossError(absl::StrCat("Stored artifact is damaged, ", how, ": ", sha256));
}

absl::Status AnnouncedContent::Check(const std::string& sha256, int64_t size_bytes) {
  RETURN_IF_ERROR(CheckArtifactName(sha256));
  if (size_bytes >= 0 && size_bytes <= kMaxArtifactBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("An artifact's size must be from 0 to ",
                                                 kMaxArtifactBytes, " bytes, is ", size_bytes));
}

AnnouncedContent::AnnouncedContent(std::string sha256, int64_t size_bytes)
    : sha256_(std::move(sha256)), size_bytes_(size_bytes) {}

absl::Status AnnouncedContent::Add(absl::string_view data) {
  if (static_cast<int64_t>(data.size()) > size_bytes_ - written_) {
    return absl::ResourceExhaustedError(absl::StrCat("Artifact is larger than the ", size_bytes_,
                                                     " bytes that were announced: ", sha256_));
  }
  hash_.Update(data);
  written_ += static_cast<int64_t>(data.size());
  return absl::OkStatus();
}

absl::Status AnnouncedContent::Finish() {
  if (written_ != size_bytes_) {
    return absl::DataLossError(
        absl::StrCat("Artifact ended after ", written_, " of ", size_bytes_, " bytes: ", sha256_));
  }
  if (const std::string got = hash_.HexDigest(); got != sha256_) {
    return absl::DataLossError(absl::StrCat("Artifact's content does not match its name: SHA-256 ",
                                            got, ", announced ", sha256_));
  }
  return absl::OkStatus();
}

SequentialReadCheck::SequentialReadCheck(std::string sha256, int64_t size_bytes)
    : sha256_(std::move(sha256)), size_bytes_(size_bytes) {}

absl::Status SequentialReadCheck::Add(int64_t offset, absl::string_view data) {
  if (checked_ || offset != hashed_) return absl::OkStatus();
  hash_.Update(data);
  hashed_ += static_cast<int64_t>(data.size());
  if (hashed_ < size_bytes_) return absl::OkStatus();
  checked_ = true;
  return hash_.HexDigest() == sha256_ ? absl::OkStatus()
                                      : ArtifactDamaged(sha256_, "its content has changed");
}

absl::Status CheckReadRange(int64_t offset, int64_t max_bytes) {
  if (offset >= 0 && max_bytes >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("Cannot read ", max_bytes, " bytes from offset ",
                                                 offset, ": neither may be negative"));
}

}  // namespace qpruner::server
