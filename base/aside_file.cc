#include "base/aside_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/write_all.h"

namespace qpruner {

absl::StatusOr<std::unique_ptr<AsideFile>> AsideFile::Create(const std::string& path, mode_t mode) {
  std::string aside = absl::StrCat(path, ".tmp.XXXXXX");
  const int fd = ::mkostemp(aside.data(), O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", aside));
  ::fchmod(fd, mode);
  std::unique_ptr<AsideFile> file(new AsideFile(path, std::move(aside), fd));
  // Root must not take a service's file away from it.
  struct stat old {};
  if (::stat(path.c_str(), &old) == 0 && old.st_uid != ::geteuid() &&
      ::fchown(fd, old.st_uid, old.st_gid) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot keep the owner of ", path));
  }
  return file;
}

AsideFile::~AsideFile() {
  ::close(fd_);
  if (!aside_.empty()) ::unlink(aside_.c_str());
}

absl::Status AsideFile::Append(absl::string_view bytes) { return WriteAll(fd_, bytes, aside_); }

absl::Status AsideFile::Commit() {
  if (::fsync(fd_) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot sync ", aside_));
  if (::rename(aside_.c_str(), path_.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot rename ", aside_, " to ", path_));
  }
  aside_.clear();
  return SyncFolder(std::filesystem::path(path_).parent_path().string());
}

}  // namespace qpruner
