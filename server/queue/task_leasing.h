// Gives tasks to workers: registration, long polls, grants, and leases that end by silence.
// JobQueue's header has the contracts of the calls.
#ifndef QPRUNER_SERVER_QUEUE_TASK_LEASING_H_
#define QPRUNER_SERVER_QUEUE_TASK_LEASING_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/queue/acquire_polls.h"
#include "server/queue/fair_shares.h"
#include "server/queue/job_changes.h"
#include "server/queue/lease_table.h"
#include "server/queue/queue_observer.h"
#include "server/queue/queue_options.h"
#include "server/queue/watch_hub.h"
#include "server/queue/work_signal.h"
#include "server/queue/worker_registry.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Calls of workers may come from any thread; those below "Time" come from that of
// JobQueue::KeepLeases().
class TaskLeasing {
 public:
  TaskLeasing(const JobQueueOptions& options, JobStore& store, Clock& clock, IdGenerator& ids,
              LeaseTable& leases, WorkerRegistry& workers, WorkSignal& work, JobChanges& changes,
              WatchHub& watches, QueueObserver& observer)
      : options_(options),
        store_(store),
        clock_(clock),
        ids_(ids),
        leases_(leases),
        workers_(workers),
        work_(work),
        changes_(changes),
        watches_(watches),
        observer_(observer),
        shares_(options.projects) {}

  // Takes up the store's leases: each gets one whole lease from now on.
  absl::Status Recover();

  absl::Status RegisterWorker(const internal::v1::RegisterWorkerRequest& request);
  int64_t AcquireTask(const internal::v1::AcquireTaskRequest& request, AcquireCallback done);
  void CancelAcquire(int64_t id);
  std::vector<v1::ListCapabilitiesResponse::Worker> LiveWorkers();
  // Ends all polls with UNAVAILABLE and refuses others.
  void StopLeasing();
  void SyncSoon() { sync_soon_ = true; }

  // --- Time ---

  // Where servers share the store: learns what the others did to leases, from time to time or at
  // once after SyncSoon().
  void SyncLeases();
  void ExpireLeases();
  // Hands tasks to the workers that wait.
  void ServePolls();
  void ExpirePolls();
  void ForgetSilentWorkers();
  // Weights, and bounds of what runs.
  void SetPolicies(const ProjectPolicies& policies) { shares_.SetPolicies(policies); }
  // When to call the above again; nothing if there is no hurry.
  std::optional<absl::Duration> TimeToNextDeadline();

 private:
  // Ends a lease that is already out of the table. False: it was over, or renewed at another
  // server. If the store fails, the lease goes back into the table, for Tick to try again.
  absl::StatusOr<bool> Revoke(HeldLease lease);
  // Polls of workers that hold a lease: its reply was lost.
  void RedeliverLeases();
  absl::Status LeaseToPolls();
  // Leases of the worker that other servers granted.
  absl::Status LearnLeasesOf(const std::string& worker);
  // Whoever waits is alive.
  void HearWaiting();
  // Answers a poll if it still waits.
  void Answer(int64_t poll, absl::StatusOr<internal::v1::AcquireTaskResponse> response);

  const JobQueueOptions options_;
  JobStore& store_;
  Clock& clock_;
  IdGenerator& ids_;
  LeaseTable& leases_;
  WorkerRegistry& workers_;
  WorkSignal& work_;
  JobChanges& changes_;
  WatchHub& watches_;
  QueueObserver& observer_;
  AcquirePolls polls_;

  std::atomic<bool> sync_soon_ = false;
  // Of the thread of KeepLeases(). On the monotonic clock.
  absl::Duration next_sync_;
  absl::Duration last_sync_;
  // Tasks were to be leased that another server had its hands on.
  bool tasks_were_busy_ = false;
  FairShares shares_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TASK_LEASING_H_
