// Deletes what has been kept for long enough, and collects artifacts that no job lists: what
// attempts that died have uploaded, and what a deletion had to leave.
#ifndef QPRUNER_SERVER_RETENTION_RETENTION_SWEEP_H_
#define QPRUNER_SERVER_RETENTION_RETENTION_SWEEP_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/job_queue.h"
#include "server/retention/retention_policy.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Not thread-safe. Several servers on one store may sweep at the same time: each step asks the
// store whether it still holds, and what is gone already is fine.
class RetentionSweep {
 public:
  RetentionSweep(RetentionPolicy policy, JobStore& store, ArtifactStore& artifacts, JobQueue& queue,
                 QueueObserver& observer, Clock& clock)
      : policy_(policy),
        store_(store),
        artifacts_(artifacts),
        queue_(queue),
        observer_(observer),
        clock_(clock) {}

  // One pass over jobs and artifacts. Blocks for as long as that takes; `stopping` is asked between
  // steps. Errors end it: the next pass begins anew.
  absl::Status Run(const std::function<bool()>& stopping);

 private:
  absl::Status SweepJobs(const std::function<bool()>& stopping);
  absl::Status SweepArtifacts(const std::function<bool()>& stopping);

  const RetentionPolicy policy_;
  JobStore& store_;
  ArtifactStore& artifacts_;
  JobQueue& queue_;
  QueueObserver& observer_;
  Clock& clock_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RETENTION_RETENTION_SWEEP_H_
