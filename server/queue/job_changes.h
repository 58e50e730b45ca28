// Changes of single jobs: the transaction, and what follows from its commit in this process.
#ifndef QPRUNER_SERVER_QUEUE_JOB_CHANGES_H_
#define QPRUNER_SERVER_QUEUE_JOB_CHANGES_H_

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "qpruner/v1/job.pb.h"
#include "server/queue/job_change.h"
#include "server/queue/lease_table.h"
#include "server/queue/limit_clock.h"
#include "server/queue/progress_limiter.h"
#include "server/queue/queue_observer.h"
#include "server/queue/task_transitions.h"
#include "server/queue/watch_hub.h"
#include "server/queue/work_signal.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// What a change brought, for memory and metrics.
struct CommitEffects {
  // The job was changed. Otherwise nothing else counts.
  bool changed = false;
  // What the job needs next was stored with the change: no plan is due.
  bool planned = false;
  std::optional<TaskFate> fate;
  // The final state that the job has entered.
  std::optional<v1::CompressionJob::State> finished;
};

// Thread-safe.
class JobChanges {
 public:
  JobChanges(JobStore& store, Clock& clock, const LimitClock& limit_clock, LeaseTable& leases,
             ProgressLimiter& progress, WorkSignal& work, WatchHub& watches,
             QueueObserver& observer)
      : store_(store),
        clock_(clock),
        limit_clock_(limit_clock),
        leases_(leases),
        progress_(progress),
        work_(work),
        watches_(watches),
        observer_(observer) {}

  // Loads the job, runs `body`, saves the job if `effects.changed` was set, commits, and does what
  // follows. `body` may run more than once, each time with fresh effects. NOT_FOUND: no such job.
  using Body = absl::FunctionRef<absl::Status(StoreTransaction& store, JobChange& change,
                                              absl::Time now, CommitEffects& effects)>;
  absl::Status Run(const JobName& name, Body body);

  // For a job whose rows are damaged, so that a change of it failed in a way that does not pass:
  // ends the lease of this token, if it is current (empty: if the task is QUEUED), and sets the
  // task aside. The job stays as it is, and its worker is free for others.
  absl::Status SetAside(const JobName& name, const std::string& task_id, const std::string& token);

  // For changes that are made otherwise: to be read once for each.
  ChangeTime Now() const { return {clock_.Now(), limit_clock_.Now()}; }
  // What follows from a commit: wakes watchers and the queue's threads, drops leases of finished
  // jobs.
  void AfterCommit(const JobName& name, const CommitEffects& effects);

 private:
  JobStore& store_;
  Clock& clock_;
  const LimitClock& limit_clock_;
  LeaseTable& leases_;
  ProgressLimiter& progress_;
  WorkSignal& work_;
  WatchHub& watches_;
  QueueObserver& observer_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_CHANGES_H_
