// Tells the thread that keeps leases and polls (JobQueue::KeepLeases) that there is something to
// do, and the one that plans (JobQueue::PlanNext) for which jobs a plan is due.
#ifndef QPRUNER_SERVER_QUEUE_WORK_SIGNAL_H_
#define QPRUNER_SERVER_QUEUE_WORK_SIGNAL_H_

#include <deque>
#include <optional>
#include <string>
#include <utility>

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
  // The job has changed: what it needs next is to be planned, and a place may be free for a worker.
  void MarkDirty(const std::string& job) {
    absl::MutexLock lock(&mutex_);
    wake_ = wake_planning_ = true;
    if (dirty_jobs_.insert(job).second) order_.push_back(job);
  }
  // The same without a wake-up: planning failed, and whoever plans knows.
  void PutBack(const std::string& job) {
    absl::MutexLock lock(&mutex_);
    if (dirty_jobs_.insert(job).second) order_.push_back(job);
  }
  void WakePlanning() {
    absl::MutexLock lock(&mutex_);
    wake_planning_ = true;
  }
  // The one that has waited longest; nothing if none does.
  std::optional<std::string> TakeDirtyJob() {
    absl::MutexLock lock(&mutex_);
    if (order_.empty()) return std::nullopt;
    std::string job = std::move(order_.front());
    order_.pop_front();
    dirty_jobs_.erase(job);
    return job;
  }
  // Until something was signalled since the last call, at most `timeout` (real time).
  void Wait(absl::Duration timeout) { Await(wake_, timeout); }
  // The same, for whoever plans.
  void WaitToPlan(absl::Duration timeout) { Await(wake_planning_, timeout); }

 private:
  void Await(bool& flag, absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&flag), timeout);
    flag = false;
  }

  absl::Mutex mutex_;
  bool wake_ ABSL_GUARDED_BY(mutex_) = true;
  bool wake_planning_ ABSL_GUARDED_BY(mutex_) = true;
  absl::flat_hash_set<std::string> dirty_jobs_ ABSL_GUARDED_BY(mutex_);
  // Of dirty_jobs_.
  std::deque<std::string> order_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_WORK_SIGNAL_H_
