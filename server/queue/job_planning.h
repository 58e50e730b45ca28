// Plans what changed jobs need next and stores it: job_planner.h decides, this applies.
#ifndef QPRUNER_SERVER_QUEUE_JOB_PLANNING_H_
#define QPRUNER_SERVER_QUEUE_JOB_PLANNING_H_

#include <deque>
#include <optional>
#include <string>
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

// Plans one job after the other: those that change now first, then what the last server left, a
// few of which need a plan. Used by one thread at a time, which holds no lock meanwhile: a search
// may take its time.
class JobPlanning {
 public:
  JobPlanning(JobStore& store, JobChanges& changes, WorkSignal& work, const TrialProposer& proposer,
              QueueObserver& observer)
      : store_(store), changes_(changes), work_(work), proposer_(proposer), observer_(observer) {}

  // Plans the next job, if one waits. False: none does. One whose planning fails waits for
  // RetryFailed().
  bool PlanNext();
  // Jobs whose planning failed are due again.
  void RetryFailed();
  bool any_failed() const { return !backlog_known_ || !failed_.empty(); }

 private:
  std::optional<std::string> TakeNext();
  // Reads what the last server left. Again with the next call if that fails.
  void TakeUpBacklog();
  // Stores what the job needs next, if anything. What has come between is planned later.
  absl::Status Plan(const JobName& name);

  JobStore& store_;
  JobChanges& changes_;
  WorkSignal& work_;
  const TrialProposer& proposer_;
  QueueObserver& observer_;

  bool backlog_known_ = false;
  std::deque<std::string> backlog_;
  std::vector<std::string> failed_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_PLANNING_H_
