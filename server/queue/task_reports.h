// What workers say about the tasks they hold. JobQueue's header has the contracts of the calls.
#ifndef QPRUNER_SERVER_QUEUE_TASK_REPORTS_H_
#define QPRUNER_SERVER_QUEUE_TASK_REPORTS_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/artifact_references.h"
#include "server/queue/job_changes.h"
#include "server/queue/lease_table.h"
#include "server/queue/progress_limiter.h"
#include "server/queue/queue_options.h"
#include "server/queue/watch_hub.h"
#include "server/queue/worker_registry.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Thread-safe.
class TaskReports {
 public:
  TaskReports(const JobQueueOptions& options, JobStore& store, ArtifactStore& artifacts,
              ArtifactReferences& references, Clock& clock, IdGenerator& ids, LeaseTable& leases,
              WorkerRegistry& workers, ProgressLimiter& progress, JobChanges& changes,
              WatchHub& watches)
      : options_(options),
        store_(store),
        artifacts_(artifacts),
        references_(references),
        clock_(clock),
        ids_(ids),
        leases_(leases),
        workers_(workers),
        progress_(progress),
        changes_(changes),
        watches_(watches) {}

  absl::StatusOr<internal::v1::HeartbeatResponse> Heartbeat(
      const internal::v1::HeartbeatRequest& request);
  absl::Status CompleteTask(const internal::v1::CompleteTaskRequest& request);
  absl::StatusOr<internal::v1::TaskRecord> FindLeasedTask(const internal::v1::Lease& lease);

 private:
  // What the store says about a heartbeat's lease, without a change.
  absl::StatusOr<internal::v1::HeartbeatResponse> CheckLease(const JobName& name,
                                                             const internal::v1::Lease& lease);
  // The same, and stores the renewal, for the other servers. With `progress`, progress and `logs`
  // too.
  absl::StatusOr<internal::v1::HeartbeatResponse> StoreRenewal(
      const JobName& name, const internal::v1::HeartbeatRequest& request, bool progress,
      const LogTurn& logs);
  // The lease as this process knows it, or, if another server granted it, as the store does.
  absl::StatusOr<HeldLease> FindHeld(const internal::v1::Lease& lease);
  // INTERNAL: what the worker names is not there. UNAVAILABLE: nobody can tell now.
  absl::Status CheckOutputs(const internal::v1::TaskResult& result);
  // Up to half as long again as the options say, so that tasks that failed together do not come
  // back together.
  absl::Duration BackoffAfter(int attempt);

  const JobQueueOptions options_;
  JobStore& store_;
  ArtifactStore& artifacts_;
  ArtifactReferences& references_;
  Clock& clock_;
  IdGenerator& ids_;
  LeaseTable& leases_;
  WorkerRegistry& workers_;
  ProgressLimiter& progress_;
  JobChanges& changes_;
  WatchHub& watches_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TASK_REPORTS_H_
