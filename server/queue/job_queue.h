// The queue: the only writer of job state. Several servers may have one each on a shared store
// (PostgreSQL).
//
// Everything durable is in the JobStore and is committed before anybody sees it; what is in memory
// (waiting workers, deadlines of leases, who is registered) can be lost at any time. So a queue
// that is built on a store goes on where the last one stopped.
//
// Time is injected and moves only when the queue is told to do what is due. A server has two
// threads for that, each in a loop: KeepLeases() and WaitForWork(), which expires leases and hands
// tasks to waiting workers, and PlanNext() and WaitToPlan(), which finds out what jobs need next;
// so no lease waits for a search. Tests call Tick(), which does both. Calls of clients and workers
// may come from any thread at any time.
//
// The work is done by parts with one job each: ClientCalls (create, cancel, pause, resume, delete),
// TaskLeasing (registration, long polls, grants, expiry), TaskReports (heartbeats and results),
// JobPlanning (what comes next), LimitEnforcement (jobs that may not go on). They share what is in
// memory (LeaseTable, WorkerRegistry, ProgressLimiter, WorkSignal) and JobChanges, which runs a
// change of a job and what follows from it.
//
// All errors carry ErrorInfo. UNAVAILABLE: the store cannot be reached, or the server is stopping.
#ifndef QPRUNER_SERVER_QUEUE_JOB_QUEUE_H_
#define QPRUNER_SERVER_QUEUE_JOB_QUEUE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "base/resource_name.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/acquire_polls.h"
#include "server/queue/artifact_references.h"
#include "server/queue/client_calls.h"
#include "server/queue/job_changes.h"
#include "server/queue/job_planning.h"
#include "server/queue/lease_table.h"
#include "server/queue/limit_clock.h"
#include "server/queue/limit_enforcement.h"
#include "server/queue/progress_limiter.h"
#include "server/queue/project_quotas.h"
#include "server/queue/queue_observer.h"
#include "server/queue/queue_options.h"
#include "server/queue/task_checkpoints.h"
#include "server/queue/task_leasing.h"
#include "server/queue/task_reports.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/watch_hub.h"
#include "server/queue/work_signal.h"
#include "server/queue/worker_registry.h"
#include "server/store/job_store.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

class JobQueue {
 public:
  // Leased tasks of the store get one whole lease from now on, so that workers that outlived the
  // last server keep their work. What else it left is looked at by PlanNext(), after what happens
  // now: jobs that run first, in the order of their priorities. Jobs that wait for their first
  // worker need no plan.
  static absl::StatusOr<std::unique_ptr<JobQueue>> Create(
      JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
      IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches, QueueObserver& observer);
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;
  ~JobQueue();

  // --- Clients ---

  // ALREADY_EXISTS: the name is taken, or the request id was used for another request.
  // RESOURCE_EXHAUSTED, with QuotaFailure and RetryInfo: a quota of the project, or the queue is
  // full.
  absl::StatusOr<v1::CompressionJob> CreateJob(const NewJob& job);
  // NOT_FOUND. FAILED_PRECONDITION: SUCCEEDED or FAILED already. Cancelling twice is fine.
  absl::StatusOr<v1::CompressionJob> CancelJob(const JobName& name);
  // NOT_FOUND. FAILED_PRECONDITION: CANCELLING or finished. Twice is fine.
  absl::StatusOr<v1::CompressionJob> PauseJob(const JobName& name);
  absl::StatusOr<v1::CompressionJob> ResumeJob(const JobName& name);
  // NOT_FOUND. FAILED_PRECONDITION: not finished. The bytes of artifacts that no other job lists go
  // at once; those that a task at work may just have stored as well go with the collection
  // (retention/) after it.
  absl::Status DeleteJob(const JobName& name);
  // The job no longer lists what its stages handed to each other (prepared/, checkpoint/), and the
  // bytes go as with DeleteJob. None left is fine. NOT_FOUND. FAILED_PRECONDITION: not finished.
  absl::Status DropIntermediates(const JobName& name);
  // Of files, for the collection.
  ArtifactReferences& references() { return references_; }

  // --- Workers ---

  // Queues the tasks again that an earlier process of this name held. INVALID_ARGUMENT.
  // RESOURCE_EXHAUSTED, with RetryInfo: JobQueueOptions::max_workers others were heard from lately.
  absl::Status RegisterWorker(const internal::v1::RegisterWorkerRequest& request);

  // Calls `done` exactly once: with a task as soon as there is one, or with an empty response
  // after the wait. It may run before this returns, and on the thread of KeepLeases() or
  // StopLeasing(); it must not call the queue. Returns an id for CancelAcquire.
  //
  // A worker has one task at a time: one that asks again while it holds a lease gets the same lease
  // again (the first reply was lost), and an older poll of the same worker ends empty.
  // FAILED_PRECONDITION: not registered. INVALID_ARGUMENT: `prepared_job` is no job's name.
  int64_t AcquireTask(const internal::v1::AcquireTaskRequest& request, AcquireCallback done);
  // Ends a poll that still waits, with CANCELLED.
  void CancelAcquire(int64_t id);

  // ABORTED: the lease is stale.
  absl::StatusOr<internal::v1::HeartbeatResponse> Heartbeat(
      const internal::v1::HeartbeatRequest& request);
  // ABORTED: the lease is stale. INVALID_ARGUMENT: no outcome. A result that the task cannot have,
  // or whose files were not uploaded or have other sizes, counts as an INTERNAL error of the
  // attempt.
  absl::Status CompleteTask(const internal::v1::CompleteTaskRequest& request);
  // The next attempt of the task gets these uploaded files among its inputs, in place of those of
  // an earlier call. ABORTED: the lease is stale. INVALID_ARGUMENT: none or too many, a bad path or
  // SHA-256, another size, a path named twice. FAILED_PRECONDITION: one was not uploaded.
  // UNAVAILABLE: another call saved some at the same time.
  absl::Status SaveCheckpoint(const internal::v1::SaveCheckpointRequest& request);
  // The task of a current lease. ABORTED: the lease is stale.
  absl::StatusOr<internal::v1::TaskRecord> FindLeasedTask(const internal::v1::Lease& lease);

  // Workers heard from within a lease's time.
  std::vector<v1::ListCapabilitiesResponse::Worker> LiveWorkers();

  // --- Time ---

  // Does what is due now for leases, limits and polls. Takes milliseconds.
  void KeepLeases();
  // Blocks until there may be something for KeepLeases() to do.
  void WaitForWork();
  // Other weights and quotas, from now on. Of the thread of KeepLeases().
  void SetPolicies(const ProjectPolicies& policies);
  // Plans for one job what it needs next, which may take seconds. False: no job waits for a plan.
  bool PlanNext();
  // Blocks until there may be something for PlanNext() to do.
  void WaitToPlan();
  // Wakes both.
  void Wake();
  // All that is due now, plans included, in the caller's thread.
  void Tick();
  // From now on no task is leased; polls that wait end with UNAVAILABLE.
  void StopLeasing();

  const JobQueueOptions& options() const { return options_; }

 private:
  JobQueue(JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
           IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches,
           QueueObserver& observer, absl::Duration limit_clock_offset);
  void ServeWorkers();
  // Where servers share the store: from time to time, looks for what another one left undone or
  // untold when it died.
  void LookAfterOthers();

  const JobQueueOptions options_;
  JobStore& store_;
  Clock& clock_;
  const LimitClock limit_clock_;
  WatchHub& watches_;

  // So that no file is removed that a job being committed has just found in place.
  ArtifactReferences references_;

  // What is known in memory. Each has its own lock, never held while calling out or waiting for
  // the store.
  LeaseTable leases_;
  WorkerRegistry workers_{static_cast<size_t>(options_.max_workers)};
  ProgressLimiter progress_;
  WorkSignal work_;

  ProjectQuotas quotas_;
  JobChanges changes_;
  ClientCalls client_calls_;
  TaskLeasing leasing_;
  TaskReports reports_;
  TaskCheckpoints checkpoints_;
  JobPlanning planning_;
  LimitEnforcement limits_;

  // Of KeepLeases(). The newest events of watched jobs at the last look, by the job's name.
  absl::Duration next_look_;
  std::map<std::string, int64_t> seen_sequences_;

  // Last: it calls the others until it is gone.
  class OtherServers;
  std::unique_ptr<OtherServers> other_servers_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_QUEUE_H_
