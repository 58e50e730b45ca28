// The queue: the only writer of job state.
//
// Everything durable is in the JobStore and is committed before anybody sees it; what is in memory
// (waiting workers, deadlines of leases, who is registered) can be lost at any time. So a queue
// that is built on a store goes on where the last one stopped.
//
// Time is injected and moves only in Tick(), which expires leases, plans what jobs need next and
// hands tasks to waiting workers. One thread calls Tick() and WaitForWork() in a loop; tests call
// Tick() themselves. Calls of clients and workers may come from any thread at any time.
//
// All errors carry ErrorInfo. UNAVAILABLE: the store cannot be reached, or the server is stopping.
#ifndef QPRUNER_SERVER_QUEUE_JOB_QUEUE_H_
#define QPRUNER_SERVER_QUEUE_JOB_QUEUE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "base/resource_name.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/queue_observer.h"
#include "server/queue/task_transitions.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/watch_hub.h"
#include "server/queue/worker_registry.h"
#include "server/store/job_store.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

struct JobQueueOptions {
  // Longer survives network blips; shorter reclaims devices sooner.
  absl::Duration lease_duration = absl::Seconds(15);
  // Bounds how long a cancelled job's engine goes on.
  absl::Duration heartbeat_interval = absl::Milliseconds(500);
  // A job's progress events are at least this far apart.
  absl::Duration progress_interval = absl::Seconds(1);
  // A failed attempt waits this long before the next, doubled each time: long enough for a
  // full disk or a restarting driver, short against the work.
  absl::Duration retry_backoff = absl::Seconds(1);
  absl::Duration max_retry_backoff = absl::Seconds(30);
  // Longest long poll: below the idle time-outs of usual proxies.
  absl::Duration max_acquire_wait = absl::Seconds(60);
};

class JobQueue {
 public:
  // Takes up the store's unfinished jobs: leased tasks get one whole lease from now on, so that
  // workers that outlived the last server keep their work.
  static absl::StatusOr<std::unique_ptr<JobQueue>> Create(
      JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
      IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches, QueueObserver& observer);
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  // --- Clients ---

  // ALREADY_EXISTS: the name is taken, or the request id was used for another request.
  absl::StatusOr<v1::CompressionJob> CreateJob(const NewJob& job);
  // NOT_FOUND. FAILED_PRECONDITION: SUCCEEDED or FAILED already. Cancelling twice is fine.
  absl::StatusOr<v1::CompressionJob> CancelJob(const JobName& name);
  // NOT_FOUND. FAILED_PRECONDITION: not finished. Artifacts that no other job lists are removed.
  absl::Status DeleteJob(const JobName& name);

  // --- Workers ---

  // Queues the tasks again that an earlier process of this name held. INVALID_ARGUMENT.
  absl::Status RegisterWorker(const internal::v1::RegisterWorkerRequest& request);

  using AcquireCallback =
      std::function<void(absl::StatusOr<internal::v1::AcquireTaskResponse> response)>;
  // Calls `done` exactly once: with a task as soon as there is one, or with an empty response
  // after the wait. It may run before this returns, and on the thread of Tick() or StopLeasing();
  // it must not call the queue. Returns an id for CancelAcquire.
  //
  // A worker has one task at a time: one that asks again while it holds a lease gets the same lease
  // again (the first reply was lost), and an older poll of the same worker ends empty.
  // FAILED_PRECONDITION: not registered.
  int64_t AcquireTask(const internal::v1::AcquireTaskRequest& request, AcquireCallback done);
  // Ends a poll that still waits, with CANCELLED.
  void CancelAcquire(int64_t id);

  // ABORTED: the lease is stale.
  absl::StatusOr<internal::v1::HeartbeatResponse> Heartbeat(
      const internal::v1::HeartbeatRequest& request);
  // ABORTED: the lease is stale. INVALID_ARGUMENT: no outcome. A result that the task cannot have,
  // or whose files were not uploaded, counts as an INTERNAL error of the attempt.
  absl::Status CompleteTask(const internal::v1::CompleteTaskRequest& request);
  // The task of a current lease. ABORTED: the lease is stale.
  absl::StatusOr<internal::v1::TaskRecord> FindLeasedTask(const internal::v1::Lease& lease);

  // Workers heard from within a lease's time.
  std::vector<v1::ListCapabilitiesResponse::Worker> LiveWorkers();

  // --- Time ---

  // Does all that is due now.
  void Tick();
  // Blocks until there may be something for Tick() to do.
  void WaitForWork();
  // Wakes WaitForWork().
  void Wake();
  // From now on no task is leased; polls that wait end with UNAVAILABLE.
  void StopLeasing();

  const JobQueueOptions& options() const { return options_; }

 private:
  // A lease as known in memory. The store decides whether it is current; this one decides when it
  // ends, on a clock that does not jump.
  struct HeldLease {
    JobName job;
    std::string task_id;
    int attempt = 0;
    std::string worker;
    std::string incarnation;
    absl::Duration deadline;
    double fraction = 0;
  };
  struct Waiter {
    int64_t id = 0;
    std::string worker;
    std::string incarnation;
    absl::Duration deadline;
    AcquireCallback done;
  };
  // What a transaction on one job brought, for memory and metrics.
  struct Effects {
    std::optional<TaskFate> fate;
    std::optional<v1::CompressionJob::State> finished;
    bool changed = false;
  };
  struct FinishedStage {
    v1::CompressionJob::Stage stage;
    absl::Duration duration;
  };

  JobQueue(JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
           IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches,
           QueueObserver& observer)
      : options_(options),
        store_(store),
        artifacts_(artifacts),
        clock_(clock),
        ids_(ids),
        proposer_(proposer),
        watches_(watches),
        observer_(observer) {}
  absl::Status Recover();

  void ExpireLeases();
  // Ends a lease that is already out of leases_.
  absl::Status RevokeLease(const std::string& token, const HeldLease& lease,
                           const absl::Status& error);
  void PlanDirtyJobs();
  absl::Status PlanJob(const JobName& name);
  // Applies a plan inside a transaction; `stages` gets the stages that ended by it.
  absl::Status ApplyPlan(StoreTransaction& store, JobChange& change, const JobView& view,
                         const JobPlan& plan, absl::Time now, std::vector<FinishedStage>& stages);
  void ServeWaiters();
  void ExpireWaiters();
  absl::Status LeaseToWaiters();
  // Polls of workers that hold a lease: its reply was lost.
  void RedeliverLeases();
  // Takes the poll out of the list; nothing if it has ended.
  AcquireCallback TakeWaiter(int64_t id);
  // What the store says about a heartbeat's lease.
  absl::StatusOr<internal::v1::HeartbeatResponse> CheckLease(StoreReader& store,
                                                             const JobName& name,
                                                             const internal::v1::Lease& lease);
  absl::Duration TimeToNextDeadline();

  // After a commit: wakes watchers and the Tick thread, drops leases of finished jobs.
  void AfterCommit(const JobName& name, const Effects& effects);
  void MarkDirty(const JobName& name) ABSL_LOCKS_EXCLUDED(mutex_);
  double RunningFractionLocked(const JobName& job, const std::string& except_token) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration BackoffAfter(int attempt) const;
  absl::Status CheckOutputs(const internal::v1::TaskResult& result);

  const JobQueueOptions options_;
  JobStore& store_;
  ArtifactStore& artifacts_;
  Clock& clock_;
  IdGenerator& ids_;
  const TrialProposer& proposer_;
  WatchHub& watches_;
  QueueObserver& observer_;

  // Held while references to artifacts are added (CompleteTask) or removed (DeleteJob), so that no
  // file is removed that a job being committed has just found in place. Taken before mutex_.
  absl::Mutex artifact_references_mutex_;

  // Never held while calling out or waiting for the store.
  absl::Mutex mutex_;
  bool wake_ ABSL_GUARDED_BY(mutex_) = true;
  bool leasing_ ABSL_GUARDED_BY(mutex_) = true;
  int64_t last_waiter_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, HeldLease> leases_ ABSL_GUARDED_BY(mutex_);  // By token.
  absl::flat_hash_set<std::string> dirty_jobs_ ABSL_GUARDED_BY(mutex_);
  // When a job's last progress event was stored, on the monotonic clock.
  absl::flat_hash_map<std::string, absl::Duration> last_progress_ ABSL_GUARDED_BY(mutex_);
  WorkerRegistry workers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_QUEUE_H_
