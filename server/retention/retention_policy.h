// How long a server keeps what jobs leave behind.
#ifndef QPRUNER_SERVER_RETENTION_RETENTION_POLICY_H_
#define QPRUNER_SERVER_RETENTION_RETENTION_POLICY_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qpruner::server {

struct RetentionPolicy {
  // Finished jobs are deleted, with their artifacts, so long after their end.
  absl::Duration keep_finished_jobs = absl::InfiniteDuration();
  // The files that the stages of a finished job handed to each other go so long after its end.
  absl::Duration keep_intermediates = absl::InfiniteDuration();
  // Artifacts that no job lists are collected once they are so old: longer than an upload waits for
  // the result that lists it where no lease tells (a server's clock that is wrong).
  absl::Duration keep_unreferenced = absl::Hours(1);
  // Between two sweeps. The first comes at the start.
  absl::Duration sweep_interval = absl::Hours(1);
};

// "forever", "30d", "12h", "1d12h", "90m". INVALID_ARGUMENT: none of these, or negative.
absl::StatusOr<absl::Duration> ParseRetention(const std::string& text);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RETENTION_RETENTION_POLICY_H_
