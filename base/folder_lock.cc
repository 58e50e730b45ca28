#include "base/folder_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"

namespace qpruner {

absl::StatusOr<std::unique_ptr<FolderLock>> FolderLock::Take(const std::string& folder, Mode mode) {
  const std::string path = absl::StrCat(folder, "/lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open ", path));
  auto closer = absl::MakeCleanup([fd] { close(fd); });
  if (flock(fd, (mode == Mode::kAlone ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return absl::ErrnoToStatus(errno, absl::StrCat("Cannot lock ", path));
    }
    const absl::StatusOr<std::string> holder = ReadFile(path, 64);
    return absl::FailedPreconditionError(absl::StrCat(
        "Folder in use by process ",
        holder.ok() ? absl::StripAsciiWhitespace(*holder) : absl::string_view("(unknown)"), ": ",
        folder, ". Stop that process, or use another folder."));
  }
  // For people only, so a failure does not matter.
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) == 0) {
    [[maybe_unused]] const ssize_t ignored = pwrite(fd, pid.data(), pid.size(), 0);
  }
  std::move(closer).Cancel();
  return std::unique_ptr<FolderLock>(new FolderLock(fd));
}

FolderLock::~FolderLock() { close(fd_); }

}  // namespace qpruner
