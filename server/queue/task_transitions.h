// What happens to a job and its tasks when one task is leased, ends or is given up: changes inside
// one transaction. What they mean for leases in memory is the queue's business.
#ifndef QPRUNER_SERVER_QUEUE_TASK_TRANSITIONS_H_
#define QPRUNER_SERVER_QUEUE_TASK_TRANSITIONS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/internal/v1/worker_service.pb.h"
#include "server/queue/job_change.h"
#include "server/queue/job_planner.h"
#include "server/store/job_store.h"

namespace qpruner::server {

struct NewLease {
  std::string token;
  std::string worker;
  std::string incarnation;
  absl::Time expire_time;
};

// What a call with a lease that is not the current one gets.
absl::Status LeaseSuperseded();
// Is `lease` the current one of `task`?
bool IsCurrentLease(const internal::v1::TaskRecord& task, const internal::v1::Lease& lease);

// Leases of `task`, the current one included, without those whose worker gave it back or that ended
// with less memory asked for by the next one: what limits.max_attempts bounds.
int CountedAttempts(const internal::v1::TaskRecord& task);

// What an error of an attempt says about the next one.
enum class ErrorClass {
  // The job's input is bad: another attempt would end the same way.
  kBadInput,
  // The device's memory is not enough for the work as it was asked for.
  kDeviceMemory,
  // A process, a machine or a connection failed: another attempt may well succeed.
  kInfrastructure,
};
ErrorClass ClassOf(absl::StatusCode code);

// Queues a planned task.
absl::Status QueueTask(StoreTransaction& store, const JobChange& change, const PlannedTask& planned,
                       absl::Time now);

// QUEUED to LEASED; the job's first lease makes it RUNNING.
absl::Status LeaseTask(StoreTransaction& store, JobChange& change, internal::v1::TaskRecord& task,
                       const NewLease& lease, absl::Time now);

// A task of a job whose rows are damaged: QUEUED, but only after some minutes, so that it holds up
// neither a queue nor a worker. The job itself is not touched.
absl::Status SetAside(StoreTransaction& store, internal::v1::TaskRecord task, absl::Time now);

// How a lease ended without a result.
struct LeaseEnd {
  absl::Status error;
  // Before the next attempt.
  absl::Duration backoff;
  // The worker is gone or silent: nothing that it still sends about this lease counts. False when
  // the worker itself reported the end, and may report it again.
  bool revoked = false;
  // The worker gave the task back: `error` says why, and no attempt is used up.
  bool returned = false;
  // Of the worker's device; 0: unknown.
  int64_t device_memory_bytes = 0;
};
enum class TaskFate { kRetried, kInfeasible, kCancelled, kJobFailed };

// LEASED to QUEUED, or to a final state, by the error's class: a trial that ran out of memory is
// INFEASIBLE; FINALIZE that ran out is tried again with half of fine_tune.micro_batch_size, down to
// 1, PREPARE with half of limits.device_memory_bytes, so that the engine plans for less and at last
// says what it needs at least: both at once and without using up an attempt; bad input and too many
// attempts end the job. A job that is CANCELLING takes the task with
// it; in one that is PAUSING it is HELD instead of QUEUED.
absl::StatusOr<TaskFate> EndLease(StoreTransaction& store, JobChange& change,
                                  internal::v1::TaskRecord& task, const LeaseEnd& end,
                                  absl::Time now);

// LEASED to SUCCEEDED, with the result put where it belongs. `running` as in JobFraction, without
// this task. INVALID_ARGUMENT: the result is not one that this task can have; nothing was written.
absl::Status CompleteTask(StoreTransaction& store, JobChange& change,
                          internal::v1::TaskRecord& task, const internal::v1::TaskResult& result,
                          double running, absl::Time now);

// The time of SEARCH is over: it goes on with the trials that run, and then with the best; those
// that wait are CANCELLED. As long as no result fits the budget all goes on, and CompleteTask ends
// the search with the first one that does.
absl::Status EndSearch(StoreTransaction& store, JobChange& change, absl::Time now);

// PENDING, RUNNING or PAUSING to FAILED; the tasks and trials that are still open are CANCELLED.
absl::Status FailJob(StoreTransaction& store, JobChange& change, const absl::Status& error,
                     absl::Time now);

// PENDING and PAUSED to CANCELLED, RUNNING and PAUSING to CANCELLING, and on to CANCELLED if no
// task is leased.
absl::Status CancelJob(StoreTransaction& store, JobChange& change, absl::Time now);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TASK_TRANSITIONS_H_
