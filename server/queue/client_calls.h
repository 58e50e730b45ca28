// What clients do to jobs. JobQueue's header has the contracts.
#ifndef QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_
#define QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_

#include <set>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "base/resource_name.h"
#include "qpruner/v1/job.pb.h"
#include "server/queue/artifact_references.h"
#include "server/queue/job_changes.h"
#include "server/queue/project_quotas.h"
#include "server/queue/queue_observer.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/watch_hub.h"
#include "server/store/job_store.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

// Thread-safe.
class ClientCalls {
 public:
  ClientCalls(JobStore& store, ArtifactReferences& references, Clock& clock, IdGenerator& ids,
              const TrialProposer& proposer, WatchHub& watches, JobChanges& changes,
              ProjectQuotas& quotas, QueueObserver& observer)
      : store_(store),
        references_(references),
        clock_(clock),
        ids_(ids),
        proposer_(proposer),
        watches_(watches),
        changes_(changes),
        quotas_(quotas),
        observer_(observer) {}

  absl::StatusOr<v1::CompressionJob> CreateJob(const NewJob& job);
  absl::StatusOr<v1::CompressionJob> CancelJob(const JobName& name);
  absl::StatusOr<v1::CompressionJob> PauseJob(const JobName& name);
  absl::StatusOr<v1::CompressionJob> ResumeJob(const JobName& name);
  absl::Status DeleteJob(const JobName& name);
  absl::Status DropIntermediates(const JobName& name);

 private:
  // Inside a transaction: the job, its first event, its request id and its first task. `taken` is
  // set if the name or the request id was.
  absl::StatusOr<v1::CompressionJob> Insert(StoreTransaction& store, const JobName& name,
                                            const NewJob& request, bool& taken);
  // Makes `move` to a job that is not being cancelled and not finished, unless it `is_done`
  // already. `verb` and `reason` are for the refusal.
  absl::StatusOr<v1::CompressionJob> MoveJob(
      const JobName& name, absl::FunctionRef<bool(v1::CompressionJob::State)> is_done,
      absl::FunctionRef<absl::Status(StoreTransaction&, JobChange&, absl::Time)> move,
      absl::string_view verb, absl::string_view reason);

  // Removes what no job lists any more, as far as that is sure now.
  void RemoveContents(const std::set<std::string>& contents);

  JobStore& store_;
  ArtifactReferences& references_;
  Clock& clock_;
  IdGenerator& ids_;
  const TrialProposer& proposer_;
  WatchHub& watches_;
  JobChanges& changes_;
  ProjectQuotas& quotas_;
  QueueObserver& observer_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_CLIENT_CALLS_H_
