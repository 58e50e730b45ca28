// The limits of v1.Limits that time decides: pure functions of a job's record.
//
// The record keeps what they need: since when the job waits, runs and searches (moved on by the
// time it was paused), and its device-seconds up to the last lease that began or ended. Times are
// LimitClock's.
#ifndef QPRUNER_SERVER_QUEUE_JOB_LIMITS_H_
#define QPRUNER_SERVER_QUEUE_JOB_LIMITS_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "qpruner/internal/v1/record.pb.h"

namespace qpruner::server {

enum class JobLimit { kQueueTime, kSearchTime, kRunTime, kDeviceTime };

struct LimitStrike {
  JobLimit limit;
  absl::Time time;
};

// The limit that strikes first; nothing if none does, or the job's clocks stand still (paused,
// stopping, finished). That of the device-seconds holds as long as no lease begins or ends.
std::optional<LimitStrike> NextLimit(const internal::v1::JobRecord& record);

// What a job that fails by it shows. Not for kSearchTime, which fails nothing.
absl::Status LimitError(JobLimit limit, const v1::Limits& limits);

// A lease began (1), ended (-1), or nothing did (0): brings the device-seconds up to `now`.
void CountLeases(internal::v1::JobRecord& record, int change, absl::Time now);

// The job was paused for so long.
void MoveClocks(internal::v1::JobRecord& record, absl::Duration by);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_LIMITS_H_
