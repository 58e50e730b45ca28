// Whole files, read with a bound and written so that a crash leaves the old or the new one.
#ifndef QPRUNER_BASE_DURABLE_FILE_H_
#define QPRUNER_BASE_DURABLE_FILE_H_

#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// The file's content. NOT_FOUND; RESOURCE_EXHAUSTED if it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);

// Of inode, size and time: differs once the file was written or replaced. NOT_FOUND.
absl::StatusOr<std::string> FileMark(const std::string& path);
// The same of a file that was looked at already.
std::string FileMark(const struct stat& info);

// Writes aside, syncs, renames over `path`, syncs the folder. When it returns OK the content is on
// disk. `mode`: 0600 for secrets.
absl::Status WriteFileDurably(const std::string& path, absl::string_view content,
                              mode_t mode = 0644);

// Creates a folder and those above it that are missing, durably. One that is there is fine.
absl::Status CreateFolders(const std::string& path);

// Syncs an open descriptor's folder entry: call after a rename into `folder`.
absl::Status SyncFolder(const std::string& folder);

}  // namespace qpruner

#endif  // QPRUNER_BASE_DURABLE_FILE_H_
