// Bounds how often a job's progress is stored: every stored step is an event that lasts.
#ifndef QPRUNER_SERVER_QUEUE_PROGRESS_LIMITER_H_
#define QPRUNER_SERVER_QUEUE_PROGRESS_LIMITER_H_

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace qpruner::server {

// Thread-safe. Times are on the monotonic clock.
class ProgressLimiter {
 public:
  explicit ProgressLimiter(absl::Duration interval) : interval_(interval) {}

  // True if the job's last turn is an interval ago; then this is its turn.
  bool TryTakeTurn(const std::string& job, absl::Duration now) {
    absl::MutexLock lock(&mutex_);
    const auto [last, is_first] = last_turns_.try_emplace(job, now);
    if (!is_first && now - last->second < interval_) return false;
    last->second = now;
    return true;
  }
  // A turn that cannot wait.
  void TakeTurn(const std::string& job, absl::Duration now) {
    absl::MutexLock lock(&mutex_);
    last_turns_[job] = now;
  }
  // Jobs that end at another server must not pile up.
  void ForgetOlderThan(absl::Duration time) {
    absl::MutexLock lock(&mutex_);
    absl::erase_if(last_turns_, [&](const auto& entry) { return entry.second < time; });
  }
  void Forget(const std::string& job) {
    absl::MutexLock lock(&mutex_);
    last_turns_.erase(job);
  }

 private:
  const absl::Duration interval_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, absl::Duration> last_turns_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_PROGRESS_LIMITER_H_
