// One job inside a transaction: its record, and every event that its change gives rise to.
//
// The only place where a job's state is changed and where sequence numbers are given.
#ifndef QPRUNER_SERVER_QUEUE_JOB_CHANGE_H_
#define QPRUNER_SERVER_QUEUE_JOB_CHANGE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/resource_name.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"
#include "server/store/job_store.h"

namespace qpruner::server {

google::protobuf::Timestamp ToTimestamp(absl::Time time);
absl::Time FromTimestamp(const google::protobuf::Timestamp& timestamp);

// To what the job's artifacts take; ends at the largest number.
void AddArtifactBytes(int64_t bytes, internal::v1::JobRecord& record);

// When a change is made.
struct ChangeTime {
  absl::Time wall;    // For people.
  absl::Time limits;  // See LimitClock.
};

// Not thread-safe; lives within one transaction body.
class JobChange {
 public:
  // NOT_FOUND: no such job.
  static absl::StatusOr<JobChange> Load(StoreTransaction& store, const JobName& name,
                                        ChangeTime now);
  // A job that is not stored yet.
  static absl::StatusOr<JobChange> Insert(StoreTransaction& store, const JobName& name,
                                          const internal::v1::JobRecord& record, ChangeTime now);

  const JobName& name() const { return name_; }
  const v1::CompressionJob& job() const { return record_.job(); }
  internal::v1::JobRecord& record() { return record_; }
  // Now, on the clock of limits.
  absl::Time limits_now() const { return now_.limits; }

  // INTERNAL: kJobTransitions has no such change. `error` only with FAILED.
  absl::Status EnterState(v1::CompressionJob::State state, const google::rpc::Status* error);
  absl::Status EnterStage(v1::CompressionJob::Stage stage);
  absl::Status PutTrial(const v1::Trial& trial);
  absl::Status PutArtifact(const internal::v1::ArtifactRef& ref);
  // The progress never falls.
  absl::Status AdvanceProgress(double fraction, absl::string_view message);
  absl::Status Log(v1::JobEvent::LogLine::Severity severity, absl::string_view text);
  absl::Status ChangeFront(const v1::ParetoFront& front);

  // Writes the record, with the time of its next limit. Call last.
  absl::Status Save();

 private:
  JobChange(StoreTransaction& store, const JobName& name, internal::v1::JobRecord record,
            ChangeTime now)
      : store_(&store), name_(name), record_(std::move(record)), now_(now) {}
  absl::Status Append(v1::JobEvent event);
  absl::Status AppendState();

  StoreTransaction* store_;
  JobName name_;
  internal::v1::JobRecord record_;
  ChangeTime now_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_CHANGE_H_
