// What a job needs next: a pure function from what is stored about it to what is to be stored.
//
// PREPARE, then TRIALs with `parallelism` of them outstanding, then FINALIZE of the chosen one.
//
// Trial n is proposed from the results of the trials 1 to n - parallelism, and from them only: the
// others count as pending even if they are finished already. So a proposal depends on the job and
// its seed alone, not on which worker was faster, nor on a restart or a retry in between. The
// price: a straggler holds back its successors, which `parallelism` larger than the number of
// workers hides.
#ifndef QPRUNER_SERVER_QUEUE_JOB_PLANNER_H_
#define QPRUNER_SERVER_QUEUE_JOB_PLANNER_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"
#include "server/queue/trial_proposer.h"

namespace qpruner::server {

// What is stored about a job, from one snapshot.
struct JobView {
  internal::v1::JobRecord record;
  // All of them; while trials are searched for (IsSearching), PREPARE alone: the others say nothing
  // that the trials do not.
  std::vector<internal::v1::TaskRecord> tasks;
  std::vector<v1::Trial> trials;  // By index.
};

struct PlannedTask {
  std::string task_id;
  internal::v1::TaskSpec spec;
};

// Changes to be made together. All empty: the job waits for its tasks, or is finished.
struct JobPlan {
  std::vector<PlannedTask> tasks;
  std::vector<v1::Trial> trials;  // QUEUED; their tasks are in `tasks`.
  // The job enters this stage.
  std::optional<v1::CompressionJob::Stage> stage;
  // Trials planned over the whole job, if that changed.
  std::optional<int> trial_count;
  // The search is over.
  std::optional<int> chosen_trial_index;
  // The job has SUCCEEDED.
  std::optional<v1::JobReport> report;
  // The job has FAILED. OK: it has not.
  absl::Status failure;

  bool empty() const {
    return tasks.empty() && trials.empty() && !stage && !trial_count && !chosen_trial_index &&
           !report && failure.ok();
  }
};

// PREPARE is done, and no trial is chosen yet.
bool IsSearching(const internal::v1::JobRecord& record);

JobPlan NextTasks(const JobView& view, const TrialProposer& proposer);

// Share of the whole job that is done, 0 to 1. `running` is the sum of the fractions of the tasks
// that run now.
double JobFraction(v1::CompressionJob::Stage stage, int completed_trials, int trial_count,
                   double running);

inline constexpr char kPrepareTaskId[] = "prepare";
inline constexpr char kFinalizeTaskId[] = "finalize";
std::string TrialTaskId(int index);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_PLANNER_H_
