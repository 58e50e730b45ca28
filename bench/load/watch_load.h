// Many watchers at once: every event in order, none lost or doubled, and how late.
#ifndef QPRUNER_BENCH_LOAD_WATCH_LOAD_H_
#define QPRUNER_BENCH_LOAD_WATCH_LOAD_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/load/service.h"

namespace qpruner::load {

struct WatchLoad {
  int watchers = 1000;
  int channels = 8;
  // Of the one job that all watch.
  int events = 100;
  double events_per_second = 5;
  // That run the jobs that are watched by one each.
  int workers = 32;
};

// All watchers on one job that tells `events` lines and is then cancelled. DATA_LOSS: a watcher got
// an event twice, out of order or not at all, or its stream ended before the job.
absl::Status WatchOneJob(Service& service, const WatchLoad& load);

// Each watcher on a job of its own; simulated workers run them all to their ends.
absl::Status WatchManyJobs(Service& service, const WatchLoad& load);

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_WATCH_LOAD_H_
