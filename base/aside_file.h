// A file that is written aside and takes its place when it is whole.
#ifndef QPRUNER_BASE_ASIDE_FILE_H_
#define QPRUNER_BASE_ASIDE_FILE_H_

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// Codes of errors: of the failed system call. Not thread-safe.
class AsideFile {
 public:
  // `mode`: 0600 for secrets. The owner of a file that is replaced is kept.
  static absl::StatusOr<std::unique_ptr<AsideFile>> Create(const std::string& path,
                                                           mode_t mode = 0644);
  // Removes what was written, unless Commit succeeded.
  ~AsideFile();
  AsideFile(const AsideFile&) = delete;
  AsideFile& operator=(const AsideFile&) = delete;

  absl::Status Append(absl::string_view bytes);
  // Syncs and renames: `path` holds the whole file or what it held before.
  absl::Status Commit();

 private:
  AsideFile(std::string path, std::string aside, int fd)
      : path_(std::move(path)), aside_(std::move(aside)), fd_(fd) {}

  const std::string path_;
  std::string aside_;  // Empty once it has its place.
  const int fd_;
};

}  // namespace qpruner

#endif  // QPRUNER_BASE_ASIDE_FILE_H_
