#include "base/durable_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/aside_file.h"
#include "base/status_macros.h"

namespace qpruner {

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open ", path));
  auto closer = absl::MakeCleanup([fd] { close(fd); });
  struct stat info {};
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot stat ", path));
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat("Not a regular file: ", path));
  }
  if (info.st_size > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("File too large: ", path, " has ",
                                                     info.st_size, " bytes, at most ", max_bytes,
                                                     " are read"));
  }
  std::string content(static_cast<size_t>(info.st_size), '\0');
  size_t filled = 0;
  while (filled < content.size()) {
    const ssize_t got = read(fd, content.data() + filled, content.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot read ", path));
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  content.resize(filled);
  return content;
}

std::string FileMark(const struct stat& info) {
  return absl::StrCat(info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec, ".",
                      info.st_mtim.tv_nsec);
}

absl::StatusOr<std::string> FileMark(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, path);
  return FileMark(info);
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open folder ", folder));
  auto closer = absl::MakeCleanup([fd] { close(fd); });
  if (fsync(fd) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot sync ", folder));
  return absl::OkStatus();
}

absl::Status CreateFolders(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return absl::OkStatus();
  std::filesystem::path folder = std::filesystem::absolute(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // It ended with a slash.
  const std::string parent = folder.parent_path().string();
  RETURN_IF_ERROR(CreateFolders(parent));
  if (mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create folder ", path));
  }
  if (!std::filesystem::is_directory(path, error)) {
    return absl::FailedPreconditionError(absl::StrCat("Not a folder: ", path));
  }
  return SyncFolder(parent);
}

absl::Status WriteFileDurably(const std::string& path, absl::string_view content, mode_t mode) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AsideFile> file, AsideFile::Create(path, mode));
  RETURN_IF_ERROR(file->Append(content));
  return file->Commit();
}

}  // namespace qpruner
