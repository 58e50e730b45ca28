// Unary calls in closed loops: what a durable creation, a read and a page of a long list cost.
#ifndef QPRUNER_BENCH_LOAD_CALLS_LOAD_H_
#define QPRUNER_BENCH_LOAD_CALLS_LOAD_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/load/service.h"

namespace qpruner::load {

struct CallsLoad {
  int callers = 64;
  // Connections that they share.
  int channels = 4;
  absl::Duration duration = absl::Seconds(5);
  // Jobs that ListJobs lists.
  int listed_jobs = 100'000;
};

// CreateJob, GetJob and ListJobs, one after the other; a line each.
absl::Status MeasureCalls(Service& service, const CallsLoad& load);

// SIGKILL to the server while `callers` create jobs, then a start: every job whose creation was
// answered must be there, and none twice. DATA_LOSS: it is not so.
absl::Status KillWhileCreating(Service& service, const CallsLoad& load);

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_CALLS_LOAD_H_
