// Pausing a job and going on with it: changes inside one transaction, as task_transitions.h.
//
// Tasks that wait are HELD, so that no worker finds them. Workers that hold a task are told to give
// it back (PAUSING); once none does, the job is PAUSED. What was done stays: results that come
// meanwhile are taken, and a task's next attempt goes on from its last checkpoint.
#ifndef QPRUNER_SERVER_QUEUE_JOB_PAUSING_H_
#define QPRUNER_SERVER_QUEUE_JOB_PAUSING_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/queue/job_change.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// PENDING to PAUSED, RUNNING to PAUSING, and on to PAUSED if no task is leased.
absl::Status PauseJob(StoreTransaction& store, JobChange& change, absl::Time now);

// PAUSED or PAUSING to RUNNING, or to PENDING if no task ever started. Tasks whose workers have not
// heard of the pause just go on.
absl::Status ResumeJob(StoreTransaction& store, JobChange& change, absl::Time now);

// After a lease has ended: PAUSING to PAUSED if it was the last. Does nothing in other states.
absl::Status FinishPause(StoreTransaction& store, JobChange& change);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_PAUSING_H_
