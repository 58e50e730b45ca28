// Reads and writes of the job store on one SQLite connection.
#ifndef QPRUNER_SERVER_STORE_SQLITE_TRANSACTION_H_
#define QPRUNER_SERVER_STORE_SQLITE_TRANSACTION_H_

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "server/store/job_store.h"
#include "server/store/sqlite_connection.h"

namespace qpruner::server {

// Of ListJobs. Parameters: 1 the project, 2 the id below which the page begins, 3 the number of
// rows, from 4 on the states, each once, then the labels' keys and values, by key.
std::string ListJobsSql(size_t state_count, size_t label_count);

// Lives inside an SQL transaction that its owner begins and ends. Also serves as a plain reader.
// Used by one thread at a time.
class SqliteTransaction final : public StoreTransaction {
 public:
  explicit SqliteTransaction(SqliteConnection& connection) : connection_(connection) {}

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
  // No other process writes.
  absl::Status LockArtifacts(ArtifactLock) override { return absl::OkStatus(); }

 private:
  // NOT_FOUND: no such job.
  absl::StatusOr<int64_t> FindJobId(const JobName& name);
  absl::Status InsertLabels(int64_t job_id, const std::string& project,
                            const v1::CompressionJob& job);
  absl::StatusOr<bool> LabelsDiffer(int64_t job_id, const v1::CompressionJob& job);

  SqliteConnection& connection_;
  // The job looked up last: a body mostly writes to one.
  JobName known_job_;
  int64_t known_job_id_ = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_SQLITE_TRANSACTION_H_
