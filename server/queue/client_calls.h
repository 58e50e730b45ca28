// What clients do to jobs. JobQueue's header has the contracts.
#ifndef QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_
#define QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_

#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "base/resource_name.h"
#include "qpruner/v1/job.pb.h"
#include "server/queue/artifact_references.h"
#include "server/queue/job_changes.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/watch_hub.h"
#include "server/store/job_store.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

// Thread-safe.
class ClientCalls {
 public:
  ClientCalls(JobStore& store, ArtifactReferences& references, Clock& clock, IdGenerator& ids,
              const TrialProposer& proposer, WatchHub& watches, JobChanges& changes)
      : store_(store),
        references_(references),
        clock_(clock),
        ids_(ids),
        proposer_(proposer),
        watches_(watches),
        changes_(changes) {}

  absl::StatusOr<v1::CompressionJob> CreateJob(const NewJob& job);
  absl::StatusOr<v1::CompressionJob> CancelJob(const JobName& name);
  absl::Status DeleteJob(const JobName& name);
  absl::Status DropIntermediates(const JobName& name);

 private:
  // Inside a transaction: the job, its first event, its request id and its first task. `taken` is
  // set if the name or the request id was.
  absl::StatusOr<v1::CompressionJob> Insert(StoreTransaction& store, const JobName& name,
                                            const NewJob& request, bool& taken);

  // Removes what no job lists any more, as far as that is sure now.
  void RemoveContents(const std::set<std::string>& contents);

  JobStore& store_;
  ArtifactReferences& references_;
  Clock& clock_;
  IdGenerator& ids_;
  const TrialProposer& proposer_;
  WatchHub& watches_;
  JobChanges& changes_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_
