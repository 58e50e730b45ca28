// One process at a time in a folder, or several that agree to share it.
#ifndef QPRUNER_BASE_FOLDER_LOCK_H_
#define QPRUNER_BASE_FOLDER_LOCK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace qpruner {

// Holds `folder`/lock with flock(2): the kernel lets go of it when the process ends, however it
// ends. The file stays; it holds the number of the process that took it last.
class FolderLock {
 public:
  // Any number of holders share a folder, or one has it alone.
  enum class Mode { kAlone, kShared };
  // The folder must exist. FAILED_PRECONDITION: held already, by this process or another.
  static absl::StatusOr<std::unique_ptr<FolderLock>> Take(const std::string& folder,
                                                          Mode mode = Mode::kAlone);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace qpruner

#endif  // QPRUNER_BASE_FOLDER_LOCK_H_
