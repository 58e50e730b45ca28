#include "server/queue/watch_hub.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace qpruner::server {

// Callbacks run under the lock: that is what makes "never after Unsubscribe returned" true. They
// only hand work to an executor, so the lock is short.

int64_t WatchHub::Subscribe(const std::string& job, Callback on_change) {
  absl::MutexLock lock(&mutex_);
  const int64_t subscription = ++last_subscription_;
  watchers_[subscription] = Watcher{job, std::move(on_change)};
  by_job_[job].push_back(subscription);
  return subscription;
}

void WatchHub::Unsubscribe(int64_t subscription) {
  absl::MutexLock lock(&mutex_);
  const auto watcher = watchers_.find(subscription);
  if (watcher == watchers_.end()) return;
  const auto list = by_job_.find(watcher->second.job);
  list->second.erase(std::find(list->second.begin(), list->second.end(), subscription));
  if (list->second.empty()) by_job_.erase(list);
  watchers_.erase(watcher);
}

void WatchHub::Notify(const std::string& job) {
  absl::MutexLock lock(&mutex_);
  const auto list = by_job_.find(job);
  if (list == by_job_.end()) return;
  for (int64_t subscription : list->second) watchers_.at(subscription).on_change();
}

void WatchHub::NotifyAll() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [subscription, watcher] : watchers_) watcher.on_change();
}

void WatchHub::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (const auto& [subscription, watcher] : watchers_) watcher.on_change();
}

bool WatchHub::closed() const {
  absl::MutexLock lock(&mutex_);
  return closed_;
}

bool WatchHub::AwaitNoWatchers(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(
                                     +[](const WatchHub* self) ABSL_EXCLUSIVE_LOCKS_REQUIRED(
                                          self->mutex_) { return self->watchers_.empty(); },
                                     this),
                                 timeout);
}

std::vector<std::string> WatchHub::WatchedJobs() const {
  std::vector<std::string> jobs;
  {
    absl::MutexLock lock(&mutex_);
    jobs.reserve(by_job_.size());
    for (const auto& [job, subscriptions] : by_job_) jobs.push_back(job);
  }
  std::sort(jobs.begin(), jobs.end());
  return jobs;
}

int64_t WatchHub::watcher_count() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(watchers_.size());
}

}  // namespace qpruner::server
