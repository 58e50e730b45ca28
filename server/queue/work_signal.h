// Tells the thread that calls JobQueue::Tick() that there is something to do, and for which jobs a
// plan is due.
#ifndef QPRUNER_SERVER_QUEUE_WORK_SIGNAL_H_
#define QPRUNER_SERVER_QUEUE_WORK_SIGNAL_H_

#include <algorithm>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace qpruner::server {

// Thread-safe.
class WorkSignal {
 public:
  void Wake() {
    absl::MutexLock lock(&mutex_);
    wake_ = true;
  }
  // The job has changed: what it needs next is to be planned.
  void MarkDirty(const std::string& job) {
    absl::MutexLock lock(&mutex_);
    dirty_jobs_.insert(job);
    wake_ = true;
  }
  // The same without a wake-up: planning failed, and comes again with the next Tick.
  void PutBack(const std::string& job) {
    absl::MutexLock lock(&mutex_);
    dirty_jobs_.insert(job);
  }
  // By name.
  std::vector<std::string> TakeDirtyJobs() {
    absl::MutexLock lock(&mutex_);
    std::vector<std::string> jobs(dirty_jobs_.begin(), dirty_jobs_.end());
    dirty_jobs_.clear();
    std::sort(jobs.begin(), jobs.end());
    return jobs;
  }
  bool any_dirty() const {
    absl::MutexLock lock(&mutex_);
    return !dirty_jobs_.empty();
  }
  // Until something was signalled since the last call, at most `timeout` (real time).
  void Wait(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&wake_), timeout);
    wake_ = false;
  }

 private:
  mutable absl::Mutex mutex_;
  bool wake_ ABSL_GUARDED_BY(mutex_) = true;
  absl::flat_hash_set<std::string> dirty_jobs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_WORK_SIGNAL_H_
