// How the queue behaves over time.
#ifndef QPRUNER_SERVER_QUEUE_QUEUE_OPTIONS_H_
#define QPRUNER_SERVER_QUEUE_QUEUE_OPTIONS_H_

#include "absl/time/time.h"
#include "server/queue/project_policies.h"

namespace qpruner::server {

struct JobQueueOptions {
  // Longer survives network blips; shorter reclaims devices sooner.
  absl::Duration lease_duration = absl::Seconds(15);
  // Bounds how long a cancelled job's engine goes on.
  absl::Duration heartbeat_interval = absl::Milliseconds(500);
  // A job's progress events are at least this far apart.
  absl::Duration progress_interval = absl::Seconds(1);
  // A failed attempt waits this long before the next, and up to half as long again (jitter),
  // doubled each time: long enough for a full disk or a restarting driver, short against the work.
  absl::Duration retry_backoff = absl::Seconds(1);
  absl::Duration max_retry_backoff = absl::Seconds(30);
  // A task that has waited so long is not passed over any more for one whose job the worker holds.
  // Above the time that trials wait in a usual queue, or no worker would keep its job.
  absl::Duration affinity_patience = absl::Minutes(2);
  // Weights and quotas, until JobQueue::SetPolicies.
  ProjectPolicies projects;
  // Longest long poll: below the idle time-outs of usual proxies.
  absl::Duration max_acquire_wait = absl::Seconds(60);
  // Workers that are known at a time. As many as a server has connections by default; what
  // ListCapabilities says of so many is 2 MiB, and clients take 4.
  int max_workers = 10'000;
};

// How often a lease is renewed in a shared store, for the other servers to see: late enough to be
// cheap, early enough that none of them gives it up.
inline absl::Duration StoredRenewalInterval(absl::Duration lease_duration) {
  return lease_duration / 3;
}

// The store is tried again after this when it failed.
inline constexpr absl::Duration kStoreRetryInterval = absl::Milliseconds(200);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_QUEUE_OPTIONS_H_
