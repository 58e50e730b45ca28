#include "worker/artifact_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/write_all.h"

namespace qpruner::worker {

namespace fs = std::filesystem;
using internal::v1::ArtifactRef;

namespace {

constexpr char kPartial[] = ".part";

int64_t ModificationTime(const struct stat& info) {
  return info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec;
}

// A file that is taken over is not verified by this process: one that changed after its hash was
// taken is found out on first use.
bool MayAdopt(const ArtifactRef& ref, const std::string& path) {
  struct stat info {};
  return IsSha256Hex(ref.sha256()) && lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
         info.st_size == ref.size_bytes();
}

absl::Status FromErrorCode(const std::error_code& error, absl::string_view what) {
  return absl::ErrnoToStatus(error.value(), what);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactCache>> ArtifactCache::Open(const std::string& folder,
                                                                   int64_t max_bytes) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return FromErrorCode(error, absl::StrCat("Cannot create the cache folder ", folder));
  return std::unique_ptr<ArtifactCache>(new ArtifactCache(folder, max_bytes));
}

std::string ArtifactCache::PathOf(const std::string& sha256) const {
  return absl::StrCat(folder_, "/", sha256);
}

absl::Status ArtifactCache::Provide(const ArtifactRef& ref, const std::string& target,
                                    const Source& source) {
  if (!IsSha256Hex(ref.sha256())) {
    return absl::InvalidArgumentError(absl::StrCat("Not a SHA-256: ", ref.sha256()));
  }
  const std::string path = PathOf(ref.sha256());
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) {
    const auto known = verified_.find(ref.sha256());
    bool intact = info.st_size == ref.size_bytes() && known != verified_.end() &&
                  known->second == ModificationTime(info);
    if (!intact && info.st_size == ref.size_bytes()) {
      ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path));
      intact = digest == ref.sha256();
    }
    if (!intact) unlink(path.c_str());
  }
  if (access(path.c_str(), R_OK) != 0) {
    absl::Status fetched = Fetch(ref, source);
    if (absl::IsDataLoss(fetched)) fetched = Fetch(ref, source);
    RETURN_IF_ERROR(fetched);
  }
  // The time of use, for Trim.
  utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
  if (stat(path.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot stat ", path));
  }
  verified_[ref.sha256()] = ModificationTime(info);

  std::error_code error;
  fs::create_directories(fs::path(target).parent_path(), error);
  if (error) return FromErrorCode(error, absl::StrCat("Cannot create the folder of ", target));
  fs::create_hard_link(path, target, error);
  if (error) return FromErrorCode(error, absl::StrCat("Cannot link ", path, " to ", target));
  return absl::OkStatus();
}

absl::Status ArtifactCache::Fetch(const ArtifactRef& ref, const Source& source) {
  const std::string partial = PathOf(ref.sha256()) + kPartial;
  const int fd = open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", partial));
  auto closer = absl::MakeCleanup([fd] { close(fd); });

  // What an earlier attempt brought counts, and is hashed like the rest.
  Sha256 hash;
  int64_t size = 0;
  std::vector<char> buffer(1 << 20);
  while (true) {
    const ssize_t got = read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot read ", partial));
    if (got == 0) break;
    hash.Update(absl::string_view(buffer.data(), static_cast<size_t>(got)));
    size += got;
  }
  if (size < ref.size_bytes()) {
    RETURN_IF_ERROR(source(size, [&](absl::string_view data) -> absl::Status {
      hash.Update(data);
      size += static_cast<int64_t>(data.size());
      if (size > ref.size_bytes()) return absl::OkStatus();  // Told apart below.
      return WriteAll(fd, data, partial);
    }));
  }
  if (size != ref.size_bytes() || hash.HexDigest() != ref.sha256()) {
    unlink(partial.c_str());
    return absl::DataLossError(absl::StrCat("Corrupt download of ", ref.path(), ": got ", size,
                                            " bytes, expected ", ref.size_bytes(),
                                            " bytes with SHA-256 ", ref.sha256()));
  }
  fchmod(fd, 0444);
  if (fsync(fd) != 0 || rename(partial.c_str(), PathOf(ref.sha256()).c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot finish ", partial));
  }
  return absl::OkStatus();
}

void ArtifactCache::Adopt(const ArtifactRef& ref, const std::string& path) {
  if (!MayAdopt(ref, path)) return;
  chmod(path.c_str(), 0444);
  rename(path.c_str(), PathOf(ref.sha256()).c_str());
}

void ArtifactCache::Share(const ArtifactRef& ref, const std::string& path) {
  if (!MayAdopt(ref, path)) return;
  chmod(path.c_str(), 0444);
  std::error_code error;  // Also where it is there already.
  fs::create_hard_link(path, PathOf(ref.sha256()), error);
}

void ArtifactCache::Trim() {
  struct File {
    int64_t used;
    int64_t size;
    std::string path;
  };
  std::vector<File> files;
  int64_t total = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    struct stat info {};
    if (stat(entry.path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    files.push_back({ModificationTime(info), info.st_size, entry.path().string()});
    total += info.st_size;
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.used < b.used; });
  for (const File& file : files) {
    if (total <= max_bytes_) break;
    if (unlink(file.path.c_str()) == 0) total -= file.size;
  }
}

}  // namespace qpruner::worker
