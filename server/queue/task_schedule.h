// Which waiting worker gets which task: a pure function of the queues, the workers and the shares.
//
// 1. Between projects: whose fair share is furthest behind (fair_shares.h).
// 2. Within a project: higher priority, then older.
// 3. A worker gets only tasks that its device has the memory for, and whose model and texts it can
// read.
// 4. Of the workers that fit, one that holds the job's prepared model; of tasks of the same
// priority,
//    one whose job the worker holds, passing over older ones as long as those have not waited for
//    `affinity_patience` ("delay scheduling": Zaharia et al., EuroSys 2010).
#ifndef QPRUNER_SERVER_QUEUE_TASK_SCHEDULE_H_
#define QPRUNER_SERVER_QUEUE_TASK_SCHEDULE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "qpruner/internal/v1/record.pb.h"
#include "server/queue/fair_shares.h"
#include "server/store/job_store.h"

namespace qpruner::server {

struct WaitingWorker {
  // 0: unknown, which fits only tasks that ask for none.
  int64_t device_memory_bytes = 0;
  // `projects/{project}/jobs/{job}`; empty: none.
  std::string prepared_job;
  // As RegisterWorkerRequest says; null: anything.
  std::shared_ptr<const std::vector<std::string>> readable_uris;
};

struct TaskAssignment {
  size_t worker = 0;                               // Position among the waiting workers.
  const internal::v1::TaskRecord* task = nullptr;  // In the queues.
};

// `workers` by how long they have waited. `shares` is told of every assignment. No worker and no
// task is used twice.
std::vector<TaskAssignment> ScheduleTasks(absl::Span<const WaitingWorker> workers,
                                          absl::Span<const StoreReader::TaskQueue> queues,
                                          absl::Time now, absl::Duration affinity_patience,
                                          FairShares& shares);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_TASK_SCHEDULE_H_
