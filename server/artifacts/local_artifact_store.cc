#include "server/artifacts/local_artifact_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/folder_lock.h"
#include "base/sha256.h"
#include "base/status_macros.h"

namespace qpruner::server {
namespace {

absl::Status CheckName(const std::string& sha256) {
  if (IsSha256Hex(sha256)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("An artifact is named by the 64 lower-case hexadecimal digits of its SHA-256, "
                   "not by \"",
                   sha256.substr(0, 100), "\""));
}

absl::Status Damaged(absl::string_view sha256, absl::string_view how) {
  return absl::DataLossError(absl::StrCat("Stored artifact is damaged, ", how, ": ", sha256));
}

class LocalArtifactWriter final : public ArtifactWriter {
 public:
  LocalArtifactWriter(int fd, std::string incoming_path, std::string object_path,
                      std::string sha256, int64_t size_bytes)
      : fd_(fd),
        incoming_path_(std::move(incoming_path)),
        object_path_(std::move(object_path)),
        sha256_(std::move(sha256)),
        size_bytes_(size_bytes) {}

  ~LocalArtifactWriter() override {
    close(fd_);
    if (!committed_) unlink(incoming_path_.c_str());
  }

  absl::Status Append(absl::string_view data) override {
    if (static_cast<int64_t>(data.size()) > size_bytes_ - written_) {
      return absl::ResourceExhaustedError(absl::StrCat("Artifact is larger than the ", size_bytes_,
                                                       " bytes that were announced: ", sha256_));
    }
    hash_.Update(data);
    written_ += static_cast<int64_t>(data.size());
    while (!data.empty()) {
      const ssize_t put = write(fd_, data.data(), data.size());
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot write ", incoming_path_));
      data.remove_prefix(static_cast<size_t>(put));
    }
    return absl::OkStatus();
  }

  absl::Status Commit() override {
    if (written_ != size_bytes_) {
      return absl::DataLossError(absl::StrCat("Artifact ended after ", written_, " of ",
                                              size_bytes_, " bytes: ", sha256_));
    }
    if (const std::string got = hash_.HexDigest(); got != sha256_) {
      return absl::DataLossError(absl::StrCat(
          "Artifact's content does not match its name: SHA-256 ", got, ", announced ", sha256_));
    }
    if (fchmod(fd_, 0444) != 0 || fsync(fd_) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("Cannot sync ", incoming_path_));
    }
    const std::string folder = std::filesystem::path(object_path_).parent_path().string();
    RETURN_IF_ERROR(CreateFolders(folder));
    // Also over an object that is there: it is the same, or damaged.
    if (rename(incoming_path_.c_str(), object_path_.c_str()) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("Cannot move artifact to ", object_path_));
    }
    committed_ = true;
    return SyncFolder(folder);
  }

 private:
  const int fd_;
  const std::string incoming_path_;
  const std::string object_path_;
  const std::string sha256_;
  const int64_t size_bytes_;
  Sha256 hash_;
  int64_t written_ = 0;
  bool committed_ = false;
};

class LocalArtifactReader final : public ArtifactReader {
 public:
  LocalArtifactReader(int fd, int64_t size_bytes, std::string sha256)
      : fd_(fd), size_bytes_(size_bytes), sha256_(std::move(sha256)) {}
  ~LocalArtifactReader() override { close(fd_); }

  int64_t size_bytes() const override { return size_bytes_; }

  absl::StatusOr<std::string> Read(int64_t offset, int64_t max_bytes) override {
    if (offset < 0 || max_bytes < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Cannot read ", max_bytes, " bytes from offset ", offset, ": neither may be negative"));
    }
    const int64_t left = std::max<int64_t>(size_bytes_ - offset, 0);
    std::string data(static_cast<size_t>(std::min(max_bytes, left)), '\0');
    size_t filled = 0;
    while (filled < data.size()) {
      const ssize_t got = pread(fd_, data.data() + filled, data.size() - filled,
                                static_cast<off_t>(offset + static_cast<int64_t>(filled)));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot read ", sha256_));
      if (got == 0) return Damaged(sha256_, "it shrank while it was read");
      filled += static_cast<size_t>(got);
    }
    RETURN_IF_ERROR(Check(offset, data));
    return data;
  }

 private:
  // Hashes along as long as the reads follow one another.
  absl::Status Check(int64_t offset, absl::string_view data) {
    if (checked_ || offset != hashed_) return absl::OkStatus();
    hash_.Update(data);
    hashed_ += static_cast<int64_t>(data.size());
    if (hashed_ < size_bytes_) return absl::OkStatus();
    checked_ = true;
    return hash_.HexDigest() == sha256_ ? absl::OkStatus()
                                        : Damaged(sha256_, "its content has changed");
  }

  const int fd_;
  const int64_t size_bytes_;
  const std::string sha256_;
  Sha256 hash_;
  int64_t hashed_ = 0;
  bool checked_ = false;
};

class LocalArtifactStore final : public ArtifactStore {
 public:
  LocalArtifactStore(std::unique_ptr<FolderLock> lock, std::string folder,
                     std::unique_ptr<FolderLock> incoming_lock, std::string incoming)
      : lock_(std::move(lock)),
        folder_(std::move(folder)),
        incoming_lock_(std::move(incoming_lock)),
        incoming_(std::move(incoming)) {}
  ~LocalArtifactStore() override {
    // A folder of this process alone.
    std::error_code ignored;
    if (incoming_lock_) std::filesystem::remove_all(incoming_, ignored);
  }

  absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(const std::string& sha256,
                                                         int64_t size_bytes) override {
    RETURN_IF_ERROR(CheckName(sha256));
    if (size_bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("An artifact's size must not be negative, is ", size_bytes));
    }
    std::string incoming = absl::StrCat(incoming_, "/", sha256.substr(0, 16), ".XXXXXX");
    const int fd = mkostemp(incoming.data(), O_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", incoming));
    return std::make_unique<LocalArtifactWriter>(
        fd, std::move(incoming), LocalArtifactPath(folder_, sha256), sha256, size_bytes);
  }

  absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckName(sha256));
    // NOFOLLOW: nothing in here is a link, unless somebody else put it there.
    const int fd =
        open(LocalArtifactPath(folder_, sha256).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat("Artifact not stored: ", sha256));
    }
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open artifact ", sha256));
    auto closer = absl::MakeCleanup([fd] { close(fd); });
    struct stat info {};
    if (fstat(fd, &info) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("Cannot stat artifact ", sha256));
    }
    if (!S_ISREG(info.st_mode)) return Damaged(sha256, "it is not a regular file");
    std::move(closer).Cancel();
    return std::make_unique<LocalArtifactReader>(fd, info.st_size, sha256);
  }

  absl::Status Verify(const std::string& sha256) override {
    ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactReader> reader, Open(sha256));
    constexpr int64_t kChunk = 1 << 20;
    int64_t offset = 0;
    do {
      ASSIGN_OR_RETURN(const std::string data, reader->Read(offset, kChunk));
      offset += static_cast<int64_t>(data.size());
    } while (offset < reader->size_bytes());
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Contains(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckName(sha256));
    struct stat info {};
    if (lstat(LocalArtifactPath(folder_, sha256).c_str(), &info) == 0) return true;
    if (errno == ENOENT) return false;
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot look for artifact ", sha256));
  }

  absl::Status Remove(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckName(sha256));
    // Not synced: an object that comes back after a crash does no harm.
    if (unlink(LocalArtifactPath(folder_, sha256).c_str()) == 0 || errno == ENOENT) {
      return absl::OkStatus();
    }
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot remove artifact ", sha256));
  }

 private:
  const std::unique_ptr<FolderLock> lock_;
  const std::string folder_;
  // Null where the folder is not shared.
  const std::unique_ptr<FolderLock> incoming_lock_;
  // Where unfinished writes lie.
  const std::string incoming_;
};

// Makes a folder of this process below `incoming` and removes those whose processes are gone: their
// locks are free. A folder gets its name only once it is locked, so that a server that starts at
// the same time never takes it for one left behind.
absl::StatusOr<std::unique_ptr<FolderLock>> TakeOwnFolder(const std::string& incoming,
                                                          std::string& own) {
  constexpr char kUnnamed[] = ".new.";
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(incoming, ignored)) {
    if (absl::StartsWith(entry.path().filename().string(), kUnnamed)) continue;
    // A file was left by a process that did not share.
    if (!entry.is_directory(ignored) || FolderLock::Take(entry.path()).ok()) {
      std::filesystem::remove_all(entry.path(), ignored);
    }
  }
  std::string unnamed = absl::StrCat(incoming, "/", kUnnamed, "XXXXXX");
  if (mkdtemp(unnamed.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", unnamed));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<FolderLock> lock, FolderLock::Take(unnamed));
  own = absl::StrCat(incoming, "/server.", absl::string_view(unnamed).substr(unnamed.size() - 6));
  if (rename(unnamed.c_str(), own.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot rename ", unnamed, " to ", own));
  }
  return lock;
}

}  // namespace

std::string LocalArtifactPath(const std::string& folder, absl::string_view sha256) {
  return absl::StrCat(folder, "/objects/", sha256.substr(0, 2), "/", sha256.substr(2));
}

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(
    LocalArtifactStoreOptions options) {
  RETURN_IF_ERROR(CreateFolders(options.folder));
  using Mode = FolderLock::Mode;
  ASSIGN_OR_RETURN(std::unique_ptr<FolderLock> lock,
                   FolderLock::Take(options.folder, options.shared ? Mode::kShared : Mode::kAlone));
  RETURN_IF_ERROR(CreateFolders(absl::StrCat(options.folder, "/objects")));
  std::string incoming = absl::StrCat(options.folder, "/incoming");
  std::unique_ptr<FolderLock> incoming_lock;
  if (options.shared) {
    RETURN_IF_ERROR(CreateFolders(incoming));
    std::string own;
    ASSIGN_OR_RETURN(incoming_lock, TakeOwnFolder(incoming, own));
    incoming = own;
  } else {
    std::error_code error;
    std::filesystem::remove_all(incoming, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot empty ", incoming));
    RETURN_IF_ERROR(CreateFolders(incoming));
  }
  return std::make_unique<LocalArtifactStore>(std::move(lock), std::move(options.folder),
                                              std::move(incoming_lock), std::move(incoming));
}

}  // namespace qpruner::server
