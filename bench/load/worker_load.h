// A thousand workers: how long a task waits for one of them, and what a restart of the server
// costs.
#ifndef QPRUNER_BENCH_LOAD_WORKER_LOAD_H_
#define QPRUNER_BENCH_LOAD_WORKER_LOAD_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/load/service.h"

namespace qpruner::load {

struct WorkerLoad {
  int workers = 1000;
  int channels = 8;
  // How long each task keeps its worker.
  absl::Duration task_duration = absl::Seconds(4);
  double jobs_per_second = 20;
  absl::Duration duration = absl::Seconds(20);
};

// Jobs come at a steady rate; SIGKILL to the server half way (with `restart`), and a start a second
// later. Prints the time from a job's creation to its first task's arrival at a worker, and from a
// trial's being queued to its lease. DATA_LOSS: a job did not succeed, or a lease was lost: a task
// was leased more than once.
absl::Status RunWorkers(Service& service, const WorkerLoad& load, bool restart);

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_WORKER_LOAD_H_
