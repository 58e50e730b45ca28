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
#include "absl/time/time.h"
#include "base/durable_file.h"
#include "base/folder_lock.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/write_all.h"
#include "server/artifacts/artifact_content.h"

namespace qpruner::server {
namespace {

namespace fs = std::filesystem;

// Of folders that are being made below incoming/.
constexpr char kUnnamed[] = ".new.";

// What a writer that is at work may look like from outside: no folder of its own yet. Older ones
// are nobody's.
constexpr absl::Duration kNamingTakesAtMost = absl::Hours(1);

class LocalArtifactWriter final : public ArtifactWriter {
 public:
  LocalArtifactWriter(int fd, std::string incoming_path, std::string object_path,
                      std::string sha256, int64_t size_bytes, Clock& clock)
      : fd_(fd),
        incoming_path_(std::move(incoming_path)),
        object_path_(std::move(object_path)),
        content_(std::move(sha256), size_bytes),
        clock_(clock) {}

  ~LocalArtifactWriter() override {
    close(fd_);
    if (!committed_) unlink(incoming_path_.c_str());
  }

  absl::Status Append(absl::string_view data) override {
    RETURN_IF_ERROR(content_.Add(data));
    return StorageFailed(WriteAll(fd_, data, incoming_path_));
  }

  absl::Status Commit() override {
    RETURN_IF_ERROR(content_.Finish());
    // The time of storing is this machine's, not a file server's.
    const timespec now = absl::ToTimespec(clock_.Now());
    const timespec times[] = {now, now};
    if (futimens(fd_, times) != 0 || fchmod(fd_, 0444) != 0 || fsync(fd_) != 0) {
      return StorageFailed(errno, absl::StrCat("Cannot sync ", incoming_path_));
    }
    const std::string folder = fs::path(object_path_).parent_path().string();
    RETURN_IF_ERROR(StorageFailed(CreateFolders(folder)));
    // Also over an object that is there: it is the same, or damaged.
    if (rename(incoming_path_.c_str(), object_path_.c_str()) != 0) {
      return StorageFailed(errno, absl::StrCat("Cannot move artifact to ", object_path_));
    }
    committed_ = true;
    return StorageFailed(SyncFolder(folder));
  }

 private:
  const int fd_;
  const std::string incoming_path_;
  const std::string object_path_;
  AnnouncedContent content_;
  Clock& clock_;
  bool committed_ = false;
};

class LocalArtifactReader final : public ArtifactReader {
 public:
  LocalArtifactReader(int fd, int64_t size_bytes, const std::string& sha256)
      : fd_(fd), size_bytes_(size_bytes), sha256_(sha256), check_(sha256, size_bytes) {}
  ~LocalArtifactReader() override { close(fd_); }

  int64_t size_bytes() const override { return size_bytes_; }

  absl::StatusOr<std::string> Read(int64_t offset, int64_t max_bytes) override {
    RETURN_IF_ERROR(CheckReadRange(offset, max_bytes));
    const int64_t left = std::max<int64_t>(size_bytes_ - offset, 0);
    std::string data(static_cast<size_t>(std::min(max_bytes, left)), '\0');
    size_t filled = 0;
    while (filled < data.size()) {
      const ssize_t got = pread(fd_, data.data() + filled, data.size() - filled,
                                static_cast<off_t>(offset + static_cast<int64_t>(filled)));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return StorageFailed(errno, absl::StrCat("Cannot read ", sha256_));
      if (got == 0) return ArtifactDamaged(sha256_, "it shrank while it was read");
      filled += static_cast<size_t>(got);
    }
    RETURN_IF_ERROR(check_.Add(offset, data));
    return data;
  }

 private:
  const int fd_;
  const int64_t size_bytes_;
  const std::string sha256_;
  SequentialReadCheck check_;
};

// Calls `visit` for each entry of a folder, until it gives an error. What is gone, or is no folder,
// has none. Not with a range-based for: its increment throws where a folder cannot be read to its
// end. UNAVAILABLE.
absl::Status ForEachEntry(const std::string& folder,
                          absl::FunctionRef<absl::Status(const fs::path&)> visit) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    RETURN_IF_ERROR(visit(entry->path()));
  }
  if (!error || error == std::errc::no_such_file_or_directory ||
      error == std::errc::not_a_directory) {
    return absl::OkStatus();
  }
  return StorageFailed(error.value(), absl::StrCat("Cannot list ", folder));
}

// Removes folders of processes that are gone: their locks are free. One that has no name yet may be
// about to be locked, unless it is old. What cannot be removed now waits for the next time.
absl::Status RemoveFoldersOfTheGone(const std::string& incoming, absl::Time unnamed_before) {
  return ForEachEntry(incoming, [&](const fs::path& path) {
    struct stat info {};
    if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
    if (absl::StartsWith(path.filename().string(), kUnnamed) &&
        absl::TimeFromTimespec(info.st_mtim) >= unnamed_before) {
      return absl::OkStatus();
    }
    // A file was left by a process that did not share.
    std::error_code ignored;
    if (!S_ISDIR(info.st_mode) || FolderLock::Take(path).ok()) fs::remove_all(path, ignored);
    return absl::OkStatus();
  });
}

class LocalArtifactStore final : public ArtifactStore {
 public:
  LocalArtifactStore(std::unique_ptr<FolderLock> lock, std::string folder,
                     std::unique_ptr<FolderLock> incoming_lock, std::string incoming, Clock& clock)
      : lock_(std::move(lock)),
        folder_(std::move(folder)),
        incoming_lock_(std::move(incoming_lock)),
        incoming_(std::move(incoming)),
        clock_(clock) {}
  ~LocalArtifactStore() override {
    // A folder of this process alone.
    std::error_code ignored;
    if (incoming_lock_) fs::remove_all(incoming_, ignored);
  }

  absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(const std::string& sha256,
                                                         int64_t size_bytes) override {
    RETURN_IF_ERROR(AnnouncedContent::Check(sha256, size_bytes));
    std::string incoming = absl::StrCat(incoming_, "/", sha256.substr(0, 16), ".XXXXXX");
    const int fd = mkostemp(incoming.data(), O_CLOEXEC);
    if (fd < 0) return StorageFailed(errno, absl::StrCat("Cannot create ", incoming));
    return std::make_unique<LocalArtifactWriter>(
        fd, std::move(incoming), LocalArtifactPath(folder_, sha256), sha256, size_bytes, clock_);
  }

  absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckArtifactName(sha256));
    // NOFOLLOW: nothing in here is a link, unless somebody else put it there.
    const int fd =
        open(LocalArtifactPath(folder_, sha256).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) return ArtifactNotStored(sha256);
    if (fd < 0 && errno == ELOOP) return ArtifactDamaged(sha256, "it is a link");
    if (fd < 0) return StorageFailed(errno, absl::StrCat("Cannot open artifact ", sha256));
    auto closer = absl::MakeCleanup([fd] { close(fd); });
    struct stat info {};
    if (fstat(fd, &info) != 0) {
      return StorageFailed(errno, absl::StrCat("Cannot stat artifact ", sha256));
    }
    if (!S_ISREG(info.st_mode)) return ArtifactDamaged(sha256, "it is not a regular file");
    std::move(closer).Cancel();
    return std::make_unique<LocalArtifactReader>(fd, info.st_size, sha256);
  }

  absl::StatusOr<StoredArtifact> Describe(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckArtifactName(sha256));
    struct stat info {};
    if (lstat(LocalArtifactPath(folder_, sha256).c_str(), &info) == 0) {
      return StoredArtifact{sha256, info.st_size, absl::TimeFromTimespec(info.st_mtim)};
    }
    if (errno == ENOENT) return ArtifactNotStored(sha256);
    return StorageFailed(errno, absl::StrCat("Cannot look for artifact ", sha256));
  }

  absl::Status List(absl::FunctionRef<absl::Status(const StoredArtifact&)> visit) override {
    return ForEachEntry(folder_ + "/objects", [&](const fs::path& part) {
      return ForEachEntry(part, [&](const fs::path& entry) -> absl::Status {
        const std::string sha256 = part.filename().string() + entry.filename().string();
        if (!IsSha256Hex(sha256)) return absl::OkStatus();
        const absl::StatusOr<StoredArtifact> stored = Describe(sha256);
        if (absl::IsNotFound(stored.status())) return absl::OkStatus();
        RETURN_IF_ERROR(stored.status());
        return visit(*stored);
      });
    });
  }

  absl::Status RemoveAbandonedWrites(absl::Time before) override {
    // Alone, this process has removed others' at its start, and its own writers remove theirs.
    if (incoming_lock_) {
      return RemoveFoldersOfTheGone(fs::path(incoming_).parent_path(),
                                    std::min(before, clock_.Now() - kNamingTakesAtMost));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& sha256) override {
    RETURN_IF_ERROR(CheckArtifactName(sha256));
    // Not synced: an object that comes back after a crash does no harm.
    if (unlink(LocalArtifactPath(folder_, sha256).c_str()) == 0 || errno == ENOENT) {
      return absl::OkStatus();
    }
    return StorageFailed(errno, absl::StrCat("Cannot remove artifact ", sha256));
  }

 private:
  const std::unique_ptr<FolderLock> lock_;
  const std::string folder_;
  // Null where the folder is not shared.
  const std::unique_ptr<FolderLock> incoming_lock_;
  // Where unfinished writes lie.
  const std::string incoming_;
  Clock& clock_;
};

// Makes a folder of this process below `incoming` and removes those whose processes are gone. A
// folder gets its name only once it is locked, so that a server that starts at the same time never
// takes it for one left behind.
absl::StatusOr<std::unique_ptr<FolderLock>> TakeOwnFolder(const std::string& incoming, Clock& clock,
                                                          std::string& own) {
  RETURN_IF_ERROR(RemoveFoldersOfTheGone(incoming, clock.Now() - kNamingTakesAtMost));
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
    ASSIGN_OR_RETURN(incoming_lock, TakeOwnFolder(incoming, options.clock, own));
    incoming = own;
  } else {
    std::error_code error;
    fs::remove_all(incoming, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot empty ", incoming));
    RETURN_IF_ERROR(CreateFolders(incoming));
  }
  return std::make_unique<LocalArtifactStore>(std::move(lock), std::move(options.folder),
                                              std::move(incoming_lock), std::move(incoming),
                                              options.clock);
}

}  // namespace qpruner::server
