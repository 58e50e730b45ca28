// Tells watchers that a job has new events. It carries no events: a watcher reads them from the
// store after the last sequence it saw, so each is seen once and in order, and a slow watcher costs
// no memory.
#ifndef QPRUNER_SERVER_QUEUE_WATCH_HUB_H_
#define QPRUNER_SERVER_QUEUE_WATCH_HUB_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace qpruner::server {

// Thread-safe.
class WatchHub {
 public:
  // Called after a commit that appended events to the job, or when the hub closes. It runs on the
  // committing thread: it must be quick, must not block and must not call the hub. It may be called
  // once more while Unsubscribe runs on another thread, never after that returned.
  using Callback = std::function<void()>;

  WatchHub() = default;
  WatchHub(const WatchHub&) = delete;
  WatchHub& operator=(const WatchHub&) = delete;

  // Subscribe first, then read the store: what is committed in between is told.
  int64_t Subscribe(const std::string& job, Callback on_change);
  void Unsubscribe(int64_t subscription);
  void Notify(const std::string& job);
  // Any job may have changed.
  void NotifyAll();
  // Calls every watcher one last time; `closed` is true from before that on.
  void Close();
  bool closed() const;
  // Waits until every watcher has unsubscribed, at most `timeout` (real time). False: some are
  // left.
  bool AwaitNoWatchers(absl::Duration timeout) const;
  int64_t watcher_count() const;
  // Jobs that somebody watches, by name.
  std::vector<std::string> WatchedJobs() const;

 private:
  struct Watcher {
    std::string job;
    Callback on_change;
  };
  mutable absl::Mutex mutex_;
  int64_t last_subscription_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<int64_t, Watcher> watchers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, std::vector<int64_t>> by_job_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_WATCH_HUB_H_
