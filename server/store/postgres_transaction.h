// Reads and writes of the job store on one PostgreSQL connection.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_TRANSACTION_H_
#define QPRUNER_SERVER_STORE_POSTGRES_TRANSACTION_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/store/job_store.h"
#include "server/store/postgres_connection.h"

namespace qpruner::server {

// Of ListJobs with states: the project, the id below which the page begins, the number of rows, the
// states, each once.
extern const PostgresStatement kListJobsByState;

// Lives inside an SQL transaction that its owner begins and ends. Used by one thread at a time.
//
// A writing one (READ COMMITTED) locks the row of a job before it looks at anything of that job, so
// that what it has read stays true and transactions on one job run one after the other. Writes are
// queued on the connection and travel with the next read or the commit, which brings their errors.
class PostgresTransaction final : public StoreTransaction {
 public:
  enum class Mode { kRead, kWrite };
  PostgresTransaction(PostgresConnection& connection, Mode mode)
      : connection_(connection), mode_(mode) {}

  absl::StatusOr<internal::v1::JobRecord> GetJob(const JobName& name) override;
  absl::StatusOr<v1::CompressionJob> ShowJob(const JobName& name) override;
  absl::StatusOr<JobPage> ListJobs(const JobFilter& filter, int page_size,
                                   const std::string& page_token) override;
  absl::StatusOr<std::optional<Request>> FindRequest(const std::string& project,
                                                     const std::string& request_id) override;
  absl::StatusOr<internal::v1::TaskRecord> GetTask(const JobName& job,
                                                   const std::string& task_id) override;
  absl::StatusOr<std::vector<internal::v1::TaskRecord>> ListTasks(const JobName& job) override;
  absl::StatusOr<std::vector<TaskQueue>> TaskQueues(absl::Time now, int limit) override;
  absl::StatusOr<std::optional<absl::Time>> NextNotBefore(absl::Time now) override;
  absl::StatusOr<std::vector<internal::v1::TaskRecord>> LeasedTasks() override;
  absl::StatusOr<std::vector<internal::v1::TaskRecord>> LeasedTasksOf(
      const std::vector<std::string>& workers) override;
  absl::StatusOr<std::vector<v1::Trial>> ListTrials(const JobName& job, int after_index,
                                                    int limit) override;
  absl::StatusOr<std::vector<v1::JobEvent>> ListEvents(const JobName& job, int64_t after_sequence,
                                                       int limit) override;
  absl::StatusOr<std::map<std::string, int64_t>> LastEventSequences(
      const std::vector<JobName>& jobs) override;
  absl::StatusOr<std::vector<v1::Artifact>> ListArtifacts(const JobName& job) override;
  absl::StatusOr<std::vector<JobName>> UnplannedJobs() override;
  absl::StatusOr<std::vector<JobName>> StalledJobs() override;
  absl::StatusOr<JobsByAge> OldestJobs(int64_t position, int limit) override;
  absl::StatusOr<std::vector<JobName>> JobsPastLimit(absl::Time now, int limit) override;
  absl::StatusOr<bool> AnyJobHasLimit() override;
  absl::StatusOr<QueueUsage> Usage(const std::string& project) override;
  absl::StatusOr<bool> IsArtifactReferenced(const std::string& sha256) override;
  absl::StatusOr<StoreCounts> Counts() override;

  absl::Status InsertJob(const internal::v1::JobRecord& record) override;
  absl::Status UpdateJob(const internal::v1::JobRecord& record) override;
  absl::Status DeleteJob(const JobName& name) override;
  absl::Status InsertRequest(const std::string& project, const std::string& request_id,
                             const Request& request) override;
  absl::StatusOr<std::optional<internal::v1::TaskRecord>> TakeTask(const JobName& job,
                                                                   const std::string& task_id,
                                                                   absl::Time now) override;
  absl::Status PutTask(const internal::v1::TaskRecord& task) override;
  absl::Status PutTrial(const JobName& job, const v1::Trial& trial) override;
  absl::Status PutArtifact(const JobName& job, const v1::Artifact& artifact) override;
  absl::Status RemoveArtifact(const JobName& job, const std::string& path) override;
  absl::Status AppendEvent(const JobName& job, const v1::JobEvent& event) override;
  absl::Status LockArtifacts(ArtifactLock lock) override;

  // Jobs with a new record or event: what other servers are told.
  const std::set<std::string>& changed_jobs() const { return changed_jobs_; }

 private:
  // A job's row, as of now: locked by this transaction, or in its snapshot.
  struct KnownJob {
    int64_t id = 0;
    std::string record;
    int64_t last_sequence = 0;
  };
  // NOT_FOUND: no such job.
  absl::StatusOr<KnownJob*> Find(const JobName& name);

  PostgresConnection& connection_;
  const Mode mode_;
  std::map<std::pair<std::string, std::string>, KnownJob> known_jobs_;
  std::set<std::string> changed_jobs_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_TRANSACTION_H_
