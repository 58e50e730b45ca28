#include "server/artifacts/s3_artifact_store.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "server/artifacts/artifact_content.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// The most parts that S3 joins.
constexpr int64_t kMaxParts = 10'000;
// The most that S3 takes with one PUT.
constexpr int64_t kMaxPutBytes = int64_t{5} << 30;

class S3ArtifactWriter final : public ArtifactWriter {
 public:
  S3ArtifactWriter(S3Client& client, std::string key, const std::string& sha256, int64_t size_bytes,
                   int64_t part_bytes)
      : client_(client),
        key_(std::move(key)),
        content_(sha256, size_bytes),
        part_bytes_(std::max(part_bytes, (size_bytes + kMaxParts - 1) / kMaxParts)) {}

  ~S3ArtifactWriter() override {
    if (upload_.empty() || committed_) return;
    if (const absl::Status aborted = client_.AbortUpload(key_, upload_); !aborted.ok()) {
      // A sweep will find it.
      spdlog::warn("an unfinished upload stays for now: {}", aborted.ToString());
    }
  }

  absl::Status Append(absl::string_view data) override {
    RETURN_IF_ERROR(content_.Add(data));
    while (!data.empty()) {
      const size_t room = static_cast<size_t>(part_bytes_) - part_.size();
      part_.append(data.data(), std::min(room, data.size()));
      data.remove_prefix(std::min(room, data.size()));
      // The last one waits for Commit: what fits into one part needs no upload in parts.
      if (!data.empty()) RETURN_IF_ERROR(StorageFailed(SendPart()));
    }
    return absl::OkStatus();
  }

  absl::Status Commit() override {
    RETURN_IF_ERROR(content_.Finish());
    if (upload_.empty()) {
      RETURN_IF_ERROR(StorageFailed(client_.Put(key_, part_)));
    } else {
      RETURN_IF_ERROR(StorageFailed(SendPart()));
      const absl::Status completed = client_.CompleteUpload(key_, upload_, etags_);
      // NOT_FOUND: an earlier try did it, and its answer was lost. The look below tells.
      if (!absl::IsNotFound(completed)) RETURN_IF_ERROR(StorageFailed(completed));
    }
    committed_ = true;
    const absl::StatusOr<S3Object> stored = client_.Head(key_);
    RETURN_IF_ERROR(StorageFailed(stored.status()));
    if (stored->size_bytes == content_.size_bytes()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("S3 storage keeps ", stored->size_bytes, " of ",
                                            content_.size_bytes(), " bytes of ",
                                            content_.sha256()));
  }

 private:
  absl::Status SendPart() {
    if (upload_.empty()) {
      ASSIGN_OR_RETURN(upload_, client_.BeginUpload(key_));
    }
    ASSIGN_OR_RETURN(std::string etag,
                     client_.PutPart(key_, upload_, static_cast<int>(etags_.size()) + 1, part_));
    etags_.push_back(std::move(etag));
    part_.clear();
    return absl::OkStatus();
  }

  S3Client& client_;
  const std::string key_;
  AnnouncedContent content_;
  const int64_t part_bytes_;
  std::string part_;
  // Empty: none was begun.
  std::string upload_;
  std::vector<std::string> etags_;
  bool committed_ = false;
};

class S3ArtifactReader final : public ArtifactReader {
 public:
  S3ArtifactReader(S3Client& client, std::string key, const std::string& sha256, int64_t size_bytes,
                   int64_t read_bytes)
      : client_(client),
        key_(std::move(key)),
        sha256_(sha256),
        size_bytes_(size_bytes),
        read_bytes_(read_bytes),
        check_(sha256, size_bytes) {}

  int64_t size_bytes() const override { return size_bytes_; }

  absl::StatusOr<std::string> Read(int64_t offset, int64_t max_bytes) override {
    RETURN_IF_ERROR(CheckReadRange(offset, max_bytes));
    const int64_t wanted = std::min(max_bytes, std::max<int64_t>(size_bytes_ - offset, 0));
    std::string data;
    while (static_cast<int64_t>(data.size()) < wanted) {
      const int64_t at = offset + static_cast<int64_t>(data.size());
      if (at < ahead_offset_ || at >= ahead_offset_ + static_cast<int64_t>(ahead_.size())) {
        RETURN_IF_ERROR(ReadAhead(at));
      }
      const auto skip = static_cast<size_t>(at - ahead_offset_);
      const size_t take = std::min(ahead_.size() - skip, static_cast<size_t>(wanted) - data.size());
      data.append(ahead_, skip, take);
    }
    // Also of an empty artifact.
    RETURN_IF_ERROR(check_.Add(offset, data));
    return data;
  }

 private:
  absl::Status ReadAhead(int64_t offset) {
    ahead_.clear();
    ahead_offset_ = offset;
    const absl::Status got = client_.Get(key_, offset, std::min(read_bytes_, size_bytes_ - offset),
                                         [this](absl::string_view data) {
                                           ahead_.append(data.data(), data.size());
                                           return absl::OkStatus();
                                         });
    if (absl::IsNotFound(got)) return ArtifactNotStored(sha256_);
    RETURN_IF_ERROR(StorageFailed(got));
    return ahead_.empty() ? ArtifactDamaged(sha256_, "it shrank while it was read")
                          : absl::OkStatus();
  }

  S3Client& client_;
  const std::string key_;
  const std::string sha256_;
  const int64_t size_bytes_;
  const int64_t read_bytes_;
  SequentialReadCheck check_;
  // A part of the content, from ahead_offset_ on.
  std::string ahead_;
  int64_t ahead_offset_ = 0;
};

class S3ArtifactStore final : public ArtifactStore {
 public:
  explicit S3ArtifactStore(S3ArtifactStoreOptions options)
      : options_(std::move(options)), client_(options_.s3, options_.location.bucket) {}

  absl::Status Check() {
    RETURN_IF_ERROR(client_.Check(Prefix()));
    RETURN_IF_ERROR(CheckOwner());
    if (!options_.upload_urls) return absl::OkStatus();
    const absl::Status refuses = client_.CheckPresignedPuts(options_.location.Key("upload-check"));
    if (!absl::IsFailedPrecondition(refuses)) return refuses;
    return absl::FailedPreconditionError(
        absl::StrCat(refuses.message(), "; uploads must go through the server then"));
  }

  absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(const std::string& sha256,
                                                         int64_t size_bytes) override {
    RETURN_IF_ERROR(AnnouncedContent::Check(sha256, size_bytes));
    return std::make_unique<S3ArtifactWriter>(client_, Key(sha256), sha256, size_bytes,
                                              options_.part_bytes);
  }

  absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& sha256) override {
    ASSIGN_OR_RETURN(const StoredArtifact stored, Describe(sha256));
    return std::make_unique<S3ArtifactReader>(client_, Key(sha256), sha256, stored.size_bytes,
                                              options_.read_bytes);
  }

  std::optional<ArtifactUrl> MakeUrl(const std::string& sha256) override {
    if (options_.url_lifetime <= absl::ZeroDuration()) return std::nullopt;
    const absl::Time now = options_.s3.clock->Now();
    return ArtifactUrl{client_.PresignGet(Key(sha256), now, options_.url_lifetime),
                       now + options_.url_lifetime};
  }

  std::optional<ArtifactUploadUrl> MakeUploadUrl(const std::string& sha256,
                                                 int64_t size_bytes) override {
    if (!options_.upload_urls || options_.url_lifetime <= absl::ZeroDuration() ||
        size_bytes > kMaxPutBytes) {
      return std::nullopt;
    }
    const absl::Time now = options_.s3.clock->Now();
    PresignedPut put =
        client_.PresignPut(Key(sha256), sha256, size_bytes, now, options_.url_lifetime);
    return ArtifactUploadUrl{std::move(put.url), std::move(put.headers),
                             now + options_.url_lifetime};
  }

  absl::StatusOr<StoredArtifact> Describe(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckArtifactName(sha256));
    const absl::StatusOr<S3Object> object = client_.Head(Key(sha256));
    if (absl::IsNotFound(object.status())) return ArtifactNotStored(sha256);
    RETURN_IF_ERROR(StorageFailed(object.status()));
    return StoredArtifact{sha256, object->size_bytes, object->modify_time};
  }

  absl::Status List(absl::FunctionRef<absl::Status(const StoredArtifact&)> visit) override {
    const std::string prefix = Prefix();
    return client_.List(prefix, [&](const S3Object& object) {
      const std::string sha256(absl::StripPrefix(object.key, prefix));
      if (!IsSha256Hex(sha256)) return absl::OkStatus();
      return visit({sha256, object.size_bytes, object.modify_time});
    });
  }

  absl::Status RemoveAbandonedWrites(absl::Time before) override {
    ASSIGN_OR_RETURN(const std::vector<S3Upload> uploads, client_.ListUploads(Prefix()));
    for (const S3Upload& upload : uploads) {
      if (upload.begin_time >= before) continue;
      RETURN_IF_ERROR(client_.AbortUpload(upload.key, upload.id));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckArtifactName(sha256));
    return StorageFailed(client_.Delete(Key(sha256)));
  }

 private:
  absl::Status CheckOwner() {
    if (options_.owner.empty()) return absl::OkStatus();
    const std::string key = options_.location.Key("owner");
    // Once more after writing: another store's server may have written at the same time.
    for (const bool may_write : {true, false}) {
      ASSIGN_OR_RETURN(const std::string owner, ReadOwner(key));
      if (owner == options_.owner) return absl::OkStatus();
      if (!owner.empty() || !may_write) {
        return absl::FailedPreconditionError(absl::StrCat(
            "Artifacts at s3://", options_.location.bucket, "/", options_.location.prefix,
            " belong to the job store ", owner, ", but this server's is ", options_.owner,
            ", whose sweeps would remove them. Give it another prefix; if that store was moved "
            "here, remove the object \"",
            key, "\" first"));
      }
      RETURN_IF_ERROR(client_.Put(key, options_.owner));
    }
    return absl::OkStatus();
  }

  // Empty: nobody's yet.
  absl::StatusOr<std::string> ReadOwner(const std::string& key) {
    std::string owner;
    const absl::Status read = client_.Get(key, 0, 256, [&](absl::string_view data) {
      owner.append(data.data(), data.size());
      return absl::OkStatus();
    });
    if (!read.ok() && !absl::IsNotFound(read)) return read;
    return owner;
  }

  std::string Prefix() const { return options_.location.Key("objects/"); }
  std::string Key(const std::string& sha256) const { return Prefix() + sha256; }

  const S3ArtifactStoreOptions options_;
  S3Client client_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenS3ArtifactStore(S3ArtifactStoreOptions options) {
  auto store = std::make_unique<S3ArtifactStore>(std::move(options));
  RETURN_IF_ERROR(store->Check());
  return store;
}

}  // namespace qpruner::server
