// A file seen through memory, read-only. Readers of foreign formats check its bytes in place.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_MAPPED_FILE_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_MAPPED_FILE_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

// Immutable and thread-safe. Opening costs no reads: pages come in as they are looked at.
class MappedFile {
 public:
  // NOT_FOUND: no such file. INVALID_ARGUMENT: not a regular file. Other codes: of the system call.
  static absl::StatusOr<std::unique_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Valid as long as this.
  absl::string_view bytes() const { return {static_cast<const char*>(address_), size_}; }

 private:
  MappedFile(void* address, size_t size) : address_(address), size_(size) {}

  void* const address_;
  const size_t size_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_MAPPED_FILE_H_
