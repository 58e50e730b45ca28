// What a place that lists its files must have to be a model.
#ifndef QPRUNER_WORKER_SOURCES_MODEL_FILES_H_
#define QPRUNER_WORKER_SOURCES_MODEL_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qpruner::worker {

// A file of a place that lists its files.
struct ListedFile {
  // Without folders.
  std::string name;
  int64_t size_bytes = 0;
};

// Checks that these files make a model and do not exceed `max_bytes`. `what` names the place.
// FAILED_PRECONDITION: config.json or weights are missing, or it is too large.
absl::Status CheckModelFiles(const std::string& what, const std::vector<ListedFile>& files,
                             int64_t max_bytes);

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_SOURCES_MODEL_FILES_H_
