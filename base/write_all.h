// Writing to a descriptor until everything is written.
#ifndef QPRUNER_BASE_WRITE_ALL_H_
#define QPRUNER_BASE_WRITE_ALL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// write(2) takes less when it likes, and nothing when a signal comes. `path` is what errors name.
// RESOURCE_EXHAUSTED: the disk is full; other codes are errno's, too.
absl::Status WriteAll(int fd, absl::string_view data, const std::string& path);

}  // namespace qpruner

#endif  // QPRUNER_BASE_WRITE_ALL_H_
