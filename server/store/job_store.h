// Where jobs live: the durable truth behind the queue.
//
// Changes are made in transactions, reads in snapshots. The interface is the same for an embedded
// SQLite file and for a shared PostgreSQL; one contract suite (job_store_contract_test.h) holds
// both to it.
#ifndef QPRUNER_SERVER_STORE_JOB_STORE_H_
#define QPRUNER_SERVER_STORE_JOB_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/resource_name.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner::server {

struct JobFilter {
  std::string project;
  std::vector<v1::CompressionJob::State> states;  // Empty: all.
  std::map<std::string, std::string> labels;      // All must match.
};

// Counts for metrics and scheduling.
struct StoreCounts {
  std::map<v1::CompressionJob::State, int64_t> jobs;
  std::map<internal::v1::TaskRecord::State, int64_t> tasks;
};

// A consistent view. Valid only within the call that handed it out.
//
// A record that cannot be read, or is not that of its job, is DATA_LOSS and logged once, but lists
// that serve many jobs (ListJobs, TaskQueues, LeasedTasks, LeasedTasksOf, OldestJobs) go on without
// it: a page may be shorter then, a queue is not.
//
// Names that are asked about and are not there are NOT_FOUND, here and in StoreTransaction. So is
// the job in every call about what belongs to a job.
class StoreReader {
 public:
  virtual ~StoreReader() = default;

  // NOT_FOUND: no such job.
  virtual absl::StatusOr<internal::v1::JobRecord> GetJob(const JobName& name) = 0;
  // What clients see of it, for less: NOT_FOUND.
  virtual absl::StatusOr<v1::CompressionJob> ShowJob(const JobName& name) = 0;
  // Latest inserted first. `page_token`: empty for the first page, else as returned.
  // INVALID_ARGUMENT: foreign token, or one of another filter; page_size below 1.
  struct JobPage {
    std::vector<v1::CompressionJob> jobs;
    std::string next_page_token;
  };
  // The cost is that of the page, however many jobs there are, but for states together with labels:
  // then it is that of the jobs with the first label.
  virtual absl::StatusOr<JobPage> ListJobs(const JobFilter& filter, int page_size,
                                           const std::string& page_token) = 0;
  // The job and fingerprint that a request id was used for, if any.
  struct Request {
    JobName job;
    std::string fingerprint;
  };
  virtual absl::StatusOr<std::optional<Request>> FindRequest(const std::string& project,
                                                             const std::string& request_id) = 0;

  virtual absl::StatusOr<internal::v1::TaskRecord> GetTask(const JobName& job,
                                                           const std::string& task_id) = 0;
  // In order of creation.
  virtual absl::StatusOr<std::vector<internal::v1::TaskRecord>> ListTasks(const JobName& job) = 0;
  // QUEUED tasks whose not_before has come, of one project and of about the same needs of a worker,
  // by priority (high first), create time, then insertion.
  struct TaskQueue {
    std::string project;
    int need_class = 0;  // See NeedClass in stored_record.h.
    std::vector<internal::v1::TaskRecord> tasks;
  };
  // Every queue that is not empty, with its first `limit` tasks; by project, then class. The
  // cost is that of the queues and of what is returned, however many tasks wait.
  virtual absl::StatusOr<std::vector<TaskQueue>> TaskQueues(absl::Time now, int limit) = 0;
  // Earliest not_before of QUEUED tasks that lies after `now`.
  virtual absl::StatusOr<std::optional<absl::Time>> NextNotBefore(absl::Time now) = 0;
  // All LEASED tasks, by lease_expire_time.
  virtual absl::StatusOr<std::vector<internal::v1::TaskRecord>> LeasedTasks() = 0;
  // Those of some workers, whose names are as RegisterWorker allows them.
  virtual absl::StatusOr<std::vector<internal::v1::TaskRecord>> LeasedTasksOf(
      const std::vector<std::string>& workers) = 0;

  // By index, those after `after_index`; limit 0: all.
  virtual absl::StatusOr<std::vector<v1::Trial>> ListTrials(const JobName& job, int after_index,
                                                            int limit) = 0;
  // By sequence, those after `after_sequence`; limit 0: all.
  virtual absl::StatusOr<std::vector<v1::JobEvent>> ListEvents(const JobName& job,
                                                               int64_t after_sequence,
                                                               int limit) = 0;
  // The newest event's sequence of each of these jobs that is there, by name; 0: it has none.
  virtual absl::StatusOr<std::map<std::string, int64_t>> LastEventSequences(
      const std::vector<JobName>& jobs) = 0;
  // By path.
  virtual absl::StatusOr<std::vector<v1::Artifact>> ListArtifacts(const JobName& job) = 0;
  // Jobs for which a server that died may have left something to plan: those in RUNNING, by
  // priority (high first), then creation, and after them those in PENDING without a task.
  virtual absl::StatusOr<std::vector<JobName>> UnplannedJobs() = 0;
  // Jobs in RUNNING without a QUEUED or LEASED task: what they need next is being planned, or
  // whoever should have planned it is gone. By creation.
  virtual absl::StatusOr<std::vector<JobName>> StalledJobs() = 0;
  // Jobs of all projects in the order of their insertion, from after `position` on.
  struct JobsByAge {
    std::vector<internal::v1::JobRecord> jobs;
    // Of the last that was looked at; `position` as it was if there are no more.
    int64_t position = 0;
  };
  virtual absl::StatusOr<JobsByAge> OldestJobs(int64_t position, int limit) = 0;
  // Jobs whose limit_time has come, earliest first.
  virtual absl::StatusOr<std::vector<JobName>> JobsPastLimit(absl::Time now, int limit) = 0;
  // True if any job has a limit_time.
  virtual absl::StatusOr<bool> AnyJobHasLimit() = 0;
  // What quotas are held against. Queued: PENDING or PAUSED.
  struct QueueUsage {
    int64_t queued_jobs = 0;
    int64_t project_queued_jobs = 0;
    // JobRecord.artifact_bytes of its jobs. Whatever these are, it ends at the largest number.
    int64_t project_artifact_bytes = 0;
  };
  virtual absl::StatusOr<QueueUsage> Usage(const std::string& project) = 0;
  // True if any job lists an artifact of this content.
  virtual absl::StatusOr<bool> IsArtifactReferenced(const std::string& sha256) = 0;
  virtual absl::StatusOr<StoreCounts> Counts() = 0;
};

// A change in the making. Reads see what was written before in the same transaction.
//
// A job that a transaction has read or written stays as it is until the transaction ends: other
// transactions that touch it wait.
class StoreTransaction : public StoreReader {
 public:
  // ALREADY_EXISTS: a job of this name is there.
  virtual absl::Status InsertJob(const internal::v1::JobRecord& record) = 0;
  // NOT_FOUND: no such job.
  virtual absl::Status UpdateJob(const internal::v1::JobRecord& record) = 0;
  // Removes the job with its tasks, trials, events, artifact entries and request ids.
  virtual absl::Status DeleteJob(const JobName& name) = 0;
  // ALREADY_EXISTS: the id was used in this project.
  virtual absl::Status InsertRequest(const std::string& project, const std::string& request_id,
                                     const Request& request) = 0;
  // The task, if it is QUEUED and its not_before has come, with its job as if it had been read;
  // nothing otherwise, or if another process has its hands on the job now: this does not wait.
  virtual absl::StatusOr<std::optional<internal::v1::TaskRecord>> TakeTask(
      const JobName& job, const std::string& task_id, absl::Time now) = 0;
  // Inserts or replaces, as do all Puts. A task keeps its place in the order of insertion.
  virtual absl::Status PutTask(const internal::v1::TaskRecord& task) = 0;
  virtual absl::Status PutTrial(const JobName& job, const v1::Trial& trial) = 0;
  virtual absl::Status PutArtifact(const JobName& job, const v1::Artifact& artifact) = 0;
  // The job no longer lists this path. One that it does not list is fine.
  virtual absl::Status RemoveArtifact(const JobName& job, const std::string& path) = 0;
  // event.sequence() must be the job's last sequence + 1. Both errors are bugs in the caller.
  // ALREADY_EXISTS: there is such an event. FAILED_PRECONDITION: it would leave a gap.
  virtual absl::Status AppendEvent(const JobName& job, const v1::JobEvent& event) = 0;

  // Keeps files and what jobs list in step when several processes share both: until this
  // transaction ends, nobody else holds kRemove, and with kRemove nobody else holds either. Take
  // kAdd before looking whether a file that is to be listed is there, kRemove before looking
  // whether a file that is to be removed is listed. Processes only: threads of one use a lock of
  // their own.
  enum class ArtifactLock { kAdd, kRemove };
  virtual absl::Status LockArtifacts(ArtifactLock lock) = 0;
};

// Hears of what other processes commit to a shared store. Called from a thread of the store's: it
// must be quick, must not block and must not call the store.
class StoreListener {
 public:
  virtual ~StoreListener() = default;
  // Soon after another process committed a change to the job.
  virtual void OnJobChanged(const std::string& job) = 0;
  // Something may have been missed: at the beginning, and when a lost connection is back.
  virtual void OnChangesMissed() = 0;
};

// Thread-safe.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // Runs `body` in a transaction. When it returns OK, what `body` wrote is on disk; when it returns
  // an error (body's own or the store's), nothing was written. `body` may run more than once, on
  // another thread, together with other bodies under one sync (group commit): it must only read and
  // write through its argument and set results that a later run overwrites. A body that goes on
  // after ALREADY_EXISTS or NOT_FOUND and returns OK is committed. Blocks. UNAVAILABLE: the store
  // cannot be reached or its disk is full; try again. If the machine loses power right after an
  // UNAVAILABLE, or the connection to the store broke in the middle of the commit, the change may
  // turn out to be there after all: retry so that it does no harm (request ids, leases).
  virtual absl::Status Transact(absl::FunctionRef<absl::Status(StoreTransaction&)> body) = 0;

  // Runs `body` on a snapshot. It may run more than once, as for Transact. Blocks.
  virtual absl::Status Read(absl::FunctionRef<absl::Status(StoreReader&)> body) = 0;

  // The same, if that needs to wait neither for other callers nor for a network. Otherwise nothing,
  // and `body` has not run.
  virtual std::optional<absl::Status> ReadAtOnce(
      absl::FunctionRef<absl::Status(StoreReader&)> body) {
    return std::nullopt;
  }

  // Names this store among all others: the same for every process that opens it, at any time. What
  // is kept elsewhere for it carries this name, so that no other store's server takes it for its
  // own.
  virtual absl::StatusOr<std::string> Identity() = 0;

  // How far the time that limits count by is ahead of the wall clock (queue/limit_clock.h), as it
  // was last kept; 0 at first. A shared store keeps none.
  virtual absl::StatusOr<absl::Duration> LimitClockOffset() { return absl::ZeroDuration(); }
  virtual absl::Status KeepLimitClockOffset(absl::Duration offset) { return absl::OkStatus(); }

  // True if other processes may have the store open at the same time.
  virtual bool shared() const { return false; }
  // From now on `listener` hears of other processes' changes, best effort: a process that dies
  // right after a commit may leave it untold. When it returns, the listener before is not called
  // any more. nullptr: none. Does nothing where the store is not shared.
  virtual void SetListener(StoreListener* listener) {}
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_JOB_STORE_H_
