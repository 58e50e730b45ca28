#include "worker/engine/formats/foreign_file.h"

#include "absl/status/status.h"
#include "base/durable_file.h"

namespace qpruner::engine {

absl::StatusOr<std::string> ReadForeignFile(const std::string& path, int64_t max_bytes) {
  auto content = ReadFile(path, max_bytes);
  if (absl::IsResourceExhausted(content.status()) || absl::IsFailedPrecondition(content.status())) {
    return absl::InvalidArgumentError(content.status().message());
  }
  return content;
}

}  // namespace qpruner::engine
