// Holds new jobs against the quotas of their project and the bound of the whole queue.
//
// What is there is counted in the store at most once a second a project, and what this server has
// created since, or is about to create, is added. So one server never passes a bound; several on a
// store may, by what the others create within that second. And a place that becomes free is seen
// after it.
#ifndef QPRUNER_SERVER_QUEUE_PROJECT_QUOTAS_H_
#define QPRUNER_SERVER_QUEUE_PROJECT_QUOTAS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "server/queue/project_policies.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Thread-safe.
class ProjectQuotas {
 public:
  ProjectQuotas(ProjectPolicies policies, JobStore& store, Clock& clock)
      : store_(store), clock_(clock), policies_(std::move(policies)) {}

  void SetPolicies(ProjectPolicies policies);

  // Takes a place for a job. RESOURCE_EXHAUSTED with ErrorInfo, QuotaFailure and RetryInfo: there
  // is none. Errors of the store.
  absl::Status Reserve(const std::string& project);
  // After each Reserve that went well, once the job was created or was not: then its place is free
  // again.
  void Settle(const std::string& project, bool created);

 private:
  struct Usage {
    // Monotonic; of the last count.
    absl::Duration counted = -absl::InfiniteDuration();
    int64_t queued_jobs = 0;
    int64_t artifact_bytes = 0;
    // Reserved and not settled; all that ever were.
    int64_t unsettled = 0;
    int64_t reserved = 0;
  };
  // If it is time to.
  absl::Status Count(const std::string& project);

  JobStore& store_;
  Clock& clock_;
  absl::Mutex mutex_;
  ProjectPolicies policies_ ABSL_GUARDED_BY(mutex_);
  Usage all_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Usage> projects_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_PROJECT_QUOTAS_H_
