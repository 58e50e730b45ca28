// Plans what changed jobs need next and stores it: job_planner.h decides, this applies.
#ifndef QPRUNER_SERVER_QUEUE_JOB_PLANNING_H_
#define QPRUNER_SERVER_QUEUE_JOB_PLANNING_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/resource_name.h"
#include "server/queue/job_changes.h"
#include "server/queue/job_planner.h"
#include "server/queue/queue_observer.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/work_signal.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// A stage that ended by a plan.
struct FinishedStage {
  v1::CompressionJob::Stage stage;
  absl::Duration duration;
};

// Stores `plan`, which was made from `view`, inside a transaction.
absl::StatusOr<std::vector<FinishedStage>> ApplyPlan(StoreTransaction& store, JobChange& change,
                                                     const JobView& view, const JobPlan& plan,
                                                     absl::Time now);

// Used by one thread at a time.
class JobPlanning {
 public:
  JobPlanning(JobStore& store, JobChanges& changes, WorkSignal& work, const TrialProposer& proposer,
              QueueObserver& observer)
      : store_(store), changes_(changes), work_(work), proposer_(proposer), observer_(observer) {}

  // True if any plan was stored. A job whose planning fails stays dirty, without a wake-up.
  bool PlanDirtyJobs();

 private:
  // True if there was something to plan and it was stored.
  absl::StatusOr<bool> Plan(const JobName& name);

  JobStore& store_;
  JobChanges& changes_;
  WorkSignal& work_;
  const TrialProposer& proposer_;
  QueueObserver& observer_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_PLANNING_H_
