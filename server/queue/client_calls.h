// What clients do to jobs. JobQueue's header has the contracts.
#ifndef QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_
#define QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "base/resource_name.h"
#include "qpruner/v1/job.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/job_changes.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/watch_hub.h"
#include "server/store/job_store.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

// Thread-safe.
class ClientCalls {
 public:
  // `artifact_references` is held while references to artifacts are removed.
  ClientCalls(JobStore& store, ArtifactStore& artifacts, absl::Mutex& artifact_references,
              Clock& clock, IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches,
              JobChanges& changes)
      : store_(store),
        artifacts_(artifacts),
        artifact_references_(artifact_references),
        clock_(clock),
        ids_(ids),
        proposer_(proposer),
        watches_(watches),
        changes_(changes) {}

  absl::StatusOr<v1::CompressionJob> CreateJob(const NewJob& job);
  absl::StatusOr<v1::CompressionJob> CancelJob(const JobName& name);
  absl::Status DeleteJob(const JobName& name);

 private:
  // Inside a transaction: the job, its first event, its request id and its first task. `taken` is
  // set if the name or the request id was.
  absl::StatusOr<v1::CompressionJob> Insert(StoreTransaction& store, const JobName& name,
                                            const NewJob& request, bool& taken);

  JobStore& store_;
  ArtifactStore& artifacts_;
  absl::Mutex& artifact_references_;
  Clock& clock_;
  IdGenerator& ids_;
  const TrialProposer& proposer_;
  WatchHub& watches_;
  JobChanges& changes_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_
