// Ends jobs and searches whose limits have struck (job_limits.h says when).
#ifndef QPRUNER_SERVER_QUEUE_LIMIT_ENFORCEMENT_H_
#define QPRUNER_SERVER_QUEUE_LIMIT_ENFORCEMENT_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "server/queue/job_changes.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Of the thread of JobQueue::KeepLeases().
class LimitEnforcement {
 public:
  LimitEnforcement(JobStore& store, Clock& clock, JobChanges& changes)
      : store_(store), clock_(clock), changes_(changes) {}

  // At most once a second: so late may a limit be.
  void Enforce();
  // When to call it again; nothing if no job has a limit.
  std::optional<absl::Duration> TimeToNext();

 private:
  absl::Status Strike(const JobName& name);

  JobStore& store_;
  Clock& clock_;
  JobChanges& changes_;
  // On the monotonic clock.
  absl::Duration next_look_;
  bool any_limits_ = false;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_LIMIT_ENFORCEMENT_H_
