// Ends jobs and searches whose limits have struck (job_limits.h says when).
#ifndef QPRUNER_SERVER_QUEUE_LIMIT_ENFORCEMENT_H_
#define QPRUNER_SERVER_QUEUE_LIMIT_ENFORCEMENT_H_

#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "server/queue/job_changes.h"
#include "server/queue/limit_clock.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Of the thread of JobQueue::KeepLeases().
class LimitEnforcement {
 public:
  // `kept_offset`: of `limit_clock`, as the store has it.
  LimitEnforcement(JobStore& store, Clock& clock, const LimitClock& limit_clock,
                   absl::Duration kept_offset, JobChanges& changes)
      : store_(store),
        clock_(clock),
        limit_clock_(limit_clock),
        changes_(changes),
        kept_offset_(kept_offset) {}

  // At most once a second: so late may a limit be.
  void Enforce();
  // When to call it again; nothing if no job has a limit.
  std::optional<absl::Duration> TimeToNext();

 private:
  absl::Status Strike(const JobName& name);
  // The next process must know, if the wall clock was set.
  void KeepOffset();

  JobStore& store_;
  Clock& clock_;
  const LimitClock& limit_clock_;
  JobChanges& changes_;
  absl::Duration kept_offset_;
  // On the monotonic clock.
  absl::Duration next_look_;
  bool any_limits_ = false;
  // Jobs past their limit whose rows are damaged: they stay as they are, until the next process.
  std::set<std::string> damaged_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_LIMIT_ENFORCEMENT_H_
