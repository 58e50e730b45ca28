#include "worker/sources/model_sources.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/durable_file.h"
#include "base/model_file.h"
#include "base/status_macros.h"
#include "base/write_all.h"
#include "worker/sources/model_files.h"

namespace qpruner::worker {
namespace {

// Progress is told this often.
constexpr int64_t kProgressBytes = int64_t{16} << 20;

// As git names the content: SHA-1 of "blob SIZE\0" and the content.
std::string GitBlobSha1(absl::string_view content) {
  const std::string header = absl::StrCat("blob ", content.size());
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_MD_CTX* const context = EVP_MD_CTX_new();
  EVP_DigestInit_ex(context, EVP_sha1(), nullptr);
  EVP_DigestUpdate(context, header.data(), header.size() + 1);
  EVP_DigestUpdate(context, content.data(), content.size());
  EVP_DigestFinal_ex(context, digest, &size);
  EVP_MD_CTX_free(context);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), size));
}

// Counts the bytes of a model, for people.
class Meter {
 public:
  Meter(const std::function<void(const std::string&)>& progress, int64_t total_bytes)
      : progress_(progress), total_bytes_(total_bytes) {}
  void Begin(const std::string& name) {
    name_ = name;
    Tell();
  }
  void Add(int64_t bytes) {
    done_ += bytes;
    if (done_ - told_ >= kProgressBytes) Tell();
  }

 private:
  void Tell() {
    told_ = done_;
    progress_(absl::StrFormat("fetching %s: %.1f of %.1f MB of the model", name_, done_ / 1e6,
                              total_bytes_ / 1e6));
  }
  const std::function<void(const std::string&)>& progress_;
  const int64_t total_bytes_;
  std::string name_;
  int64_t done_ = 0;
  int64_t told_ = 0;
};

template <typename File>
absl::Status CheckListing(const std::string& uri, const std::vector<File>& files, int64_t max_bytes,
                          int64_t& total) {
  std::vector<ListedFile> listed;
  total = 0;
  for (const File& file : files) listed.push_back({file.name, file.size_bytes});
  RETURN_IF_ERROR(CheckModelFiles(uri, listed, max_bytes));
  for (const File& file : files) total += file.size_bytes;
  return absl::OkStatus();
}

// Below it, or it.
bool IsAtOrBelow(const S3Location& place, const S3Location& allowed) {
  return place.bucket == allowed.bucket &&
         (allowed.prefix.empty() || place.prefix == allowed.prefix ||
          absl::StartsWith(place.prefix, allowed.prefix + "/"));
}

}  // namespace

ModelSources::ModelSources(ModelSourceOptions options) : options_(std::move(options)) {
  if (options_.hub) hub_ = std::make_unique<HubClient>(*options_.hub);
}

std::vector<std::string> ModelSources::Prefixes() const {
  std::vector<std::string> prefixes;
  if (hub_) prefixes.emplace_back("hf://");
  for (const S3Location& models : options_.s3_models) {
    prefixes.push_back(absl::StrCat("s3://", models.bucket, "/", models.prefix));
  }
  return prefixes;
}

bool ModelSources::Fetches(const std::string& uri) {
  return absl::StartsWith(uri, "hf://") || absl::StartsWith(uri, "s3://");
}

absl::StatusOr<std::string> ModelSources::Fetch(const std::string& uri, const std::string& folder,
                                                ArtifactCache& cache, const Progress& progress,
                                                std::stop_token stop) {
  if (absl::StartsWith(uri, "hf://")) return FetchFromHub(uri, folder, cache, progress, stop);
  RETURN_IF_ERROR(FetchFromS3(uri, folder, progress, stop));
  return uri;
}

absl::StatusOr<std::string> ModelSources::FetchFromHub(const std::string& uri,
                                                       const std::string& folder,
                                                       ArtifactCache& cache,
                                                       const Progress& progress,
                                                       std::stop_token stop) {
  if (hub_ == nullptr) {
    return absl::FailedPreconditionError(
        "model.uri: this worker fetches no models from a hub (--hub=off)");
  }
  ASSIGN_OR_RETURN(const HubModel model, HubModel::Parse(uri));
  progress(absl::StrCat("looking up ", uri));
  ASSIGN_OR_RETURN(const HubSnapshot snapshot, hub_->Resolve(model, stop));
  int64_t total = 0;
  RETURN_IF_ERROR(CheckListing(uri, snapshot.files, options_.max_model_bytes, total));
  Meter meter(progress, total);
  for (const HubSnapshot::File& file : snapshot.files) {
    meter.Begin(file.name);
    const std::string target = absl::StrCat(folder, "/", file.name);
    if (!file.sha256.empty()) {
      internal::v1::ArtifactRef ref;
      ref.set_path(file.name);
      ref.set_sha256(file.sha256);
      ref.set_size_bytes(file.size_bytes);
      RETURN_IF_ERROR(
          cache.Provide(ref, target, [&](int64_t offset, const ArtifactCache::Sink& sink) {
            return hub_->Fetch(
                model.repository, snapshot, file, offset,
                [&](absl::string_view data) {
                  meter.Add(static_cast<int64_t>(data.size()));
                  return sink(data);
                },
                stop);
          }));
      continue;
    }
    // Small, and bounded by CheckListing.
    std::string content;
    for (int tries = 0;; ++tries) {
      content.clear();
      RETURN_IF_ERROR(hub_->Fetch(
          model.repository, snapshot, file, 0,
          [&](absl::string_view data) {
            content.append(data.data(), data.size());
            return absl::OkStatus();
          },
          stop));
      if (GitBlobSha1(content) == file.git_blob_sha1) break;
      if (tries > 0) {
        return absl::DataLossError(
            absl::StrCat("model.uri: ", uri, ", ", file.name,
                         ": its content is not what the hub lists, git blob ", file.git_blob_sha1));
      }
    }
    meter.Add(file.size_bytes);
    RETURN_IF_ERROR(WriteFileDurably(target, content));
  }
  return absl::StrCat("hf://", model.repository, "@", snapshot.commit);
}

absl::Status ModelSources::FetchFromS3(const std::string& uri, const std::string& folder,
                                       const Progress& progress, std::stop_token stop) {
  ASSIGN_OR_RETURN(const S3Location place, S3Location::Parse(uri));
  if (std::none_of(options_.s3_models.begin(), options_.s3_models.end(),
                   [&](const S3Location& allowed) { return IsAtOrBelow(place, allowed); })) {
    return absl::FailedPreconditionError(absl::StrCat(
        "model.uri: this worker reads no models from there (its --model-root s3://... names what "
        "it reads): ",
        uri));
  }
  S3Client client(options_.s3, place.bucket);
  struct Found {
    std::string name;
    int64_t size_bytes;
    S3Object object;
  };
  std::vector<Found> files;
  int64_t total = 0;
  progress(absl::StrCat("looking up ", uri));
  if (absl::EndsWithIgnoreCase(place.prefix, ".gguf")) {
    ASSIGN_OR_RETURN(const S3Object object, client.Head(place.prefix, stop));
    if (object.size_bytes > options_.max_model_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat("model.uri: ", uri, " is larger than this worker takes (--max-model-bytes ",
                       options_.max_model_bytes, ")"));
    }
    files.push_back({"model.gguf", object.size_bytes, object});
    total = object.size_bytes;
  } else {
    const std::string prefix = place.prefix.empty() ? "" : place.prefix + "/";
    RETURN_IF_ERROR(client.List(
        prefix,
        [&](const S3Object& object) {
          std::string name(absl::StripPrefix(object.key, prefix));
          if (IsModelFile(name)) files.push_back({std::move(name), object.size_bytes, object});
          return absl::OkStatus();
        },
        stop));
    RETURN_IF_ERROR(CheckListing(uri, files, options_.max_model_bytes, total));
  }
  Meter meter(progress, total);
  for (const Found& file : files) {
    meter.Begin(file.name);
    const std::string target = absl::StrCat(folder, "/", file.name);
    const int fd = open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", target));
    const auto closer = absl::MakeCleanup([fd] { close(fd); });
    int64_t written = 0;
    const absl::Status got = client.Get(
        file.object.key, 0, file.size_bytes,
        [&](absl::string_view data) {
          written += static_cast<int64_t>(data.size());
          meter.Add(static_cast<int64_t>(data.size()));
          return WriteAll(fd, data, target);
        },
        stop, file.object.etag);
    if (absl::IsAborted(got) || (got.ok() && written != file.size_bytes)) {
      return absl::UnavailableError(
          absl::StrCat("model.uri: ", uri, ", ", file.name, ": changed while it was read"));
    }
    RETURN_IF_ERROR(got);
  }
  return absl::OkStatus();
}

}  // namespace qpruner::worker
