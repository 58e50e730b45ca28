// Files that a client names.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_FOREIGN_FILE_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_FOREIGN_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace qpruner::engine {

// The bytes of a file that a client named. INVALID_ARGUMENT: larger than `max_bytes`, or no regular
// file. NOT_FOUND and other codes: of the failed system call.
absl::StatusOr<std::string> ReadForeignFile(const std::string& path, int64_t max_bytes);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_FOREIGN_FILE_H_
