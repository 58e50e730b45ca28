// The workers that this server process has heard from. In memory: after a restart they register
// again, because AcquireTask tells them to.
#ifndef QPRUNER_SERVER_QUEUE_WORKER_REGISTRY_H_
#define QPRUNER_SERVER_QUEUE_WORKER_REGISTRY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace qpruner::server {

struct WorkerInfo {
  std::string name;
  std::string incarnation;
  std::string device;
  int64_t device_memory_bytes = 0;
  std::string version;
  // As RegisterWorkerRequest says; null: anything.
  std::shared_ptr<const std::vector<std::string>> readable_uris;
  // On the monotonic clock.
  absl::Duration last_heard;
};

// Thread-safe.
class WorkerRegistry {
 public:
  // Of so many workers, whose names are in the hands of who bears their tokens.
  explicit WorkerRegistry(size_t most) : most_(most) {}

  // Replaces an earlier process of the same name. A new name takes the place of the worker that is
  // silent for longest where there is no other; false, and nothing changes: all were heard from
  // since `live_since`.
  bool Register(WorkerInfo worker, absl::Duration live_since) {
    absl::MutexLock lock(&mutex_);
    if (workers_.size() >= most_ && !workers_.contains(worker.name)) {
      const auto silent = std::min_element(
          workers_.begin(), workers_.end(),
          [](const auto& a, const auto& b) { return a.second.last_heard < b.second.last_heard; });
      if (silent == workers_.end() || silent->second.last_heard >= live_since) return false;
      workers_.erase(silent);
    }
    std::string name = worker.name;
    workers_[std::move(name)] = std::move(worker);
    return true;
  }
  bool IsFull() const {
    absl::MutexLock lock(&mutex_);
    return workers_.size() >= most_;
  }
  enum class Standing { kRegistered, kUnknown, kReplaced };
  // kReplaced: another process has the name.
  Standing StandingOf(const std::string& name, const std::string& incarnation) const {
    absl::MutexLock lock(&mutex_);
    const auto found = workers_.find(name);
    if (found == workers_.end()) return Standing::kUnknown;
    return found->second.incarnation == incarnation ? Standing::kRegistered : Standing::kReplaced;
  }
  bool IsRegistered(const std::string& name, const std::string& incarnation) const {
    return StandingOf(name, incarnation) == Standing::kRegistered;
  }
  // Bytes; 0 if unknown.
  int64_t DeviceMemoryOf(const std::string& name) const {
    absl::MutexLock lock(&mutex_);
    const auto found = workers_.find(name);
    return found == workers_.end() ? 0 : found->second.device_memory_bytes;
  }
  std::shared_ptr<const std::vector<std::string>> ReadableUrisOf(const std::string& name) const {
    absl::MutexLock lock(&mutex_);
    const auto found = workers_.find(name);
    return found == workers_.end() ? nullptr : found->second.readable_uris;
  }
  void Hear(const std::string& name, absl::Duration now) {
    absl::MutexLock lock(&mutex_);
    if (const auto found = workers_.find(name); found != workers_.end()) {
      found->second.last_heard = now;
    }
  }
  // By name, those heard from since `since`.
  std::vector<WorkerInfo> HeardSince(absl::Duration since) const {
    absl::MutexLock lock(&mutex_);
    std::vector<WorkerInfo> result;
    for (const auto& [name, worker] : workers_) {
      if (worker.last_heard >= since) result.push_back(worker);
    }
    return result;
  }
  // Names that come and go must not pile up.
  void ForgetSilentSince(absl::Duration since) {
    absl::MutexLock lock(&mutex_);
    std::erase_if(workers_, [&](const auto& entry) { return entry.second.last_heard < since; });
  }

 private:
  const size_t most_;
  mutable absl::Mutex mutex_;
  std::map<std::string, WorkerInfo> workers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_WORKER_REGISTRY_H_
