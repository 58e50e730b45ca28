// A few threads for the blocking work behind calls of gRPC's callback API, whose reactions must not
// block.
#ifndef QPRUNER_SERVER_RPC_CALLBACK_EXECUTOR_H_
#define QPRUNER_SERVER_RPC_CALLBACK_EXECUTOR_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace qpruner::server {

// Thread-safe. Destroyed after all work that was added has run.
class CallbackExecutor {
 public:
  explicit CallbackExecutor(int thread_count) {
    for (int i = 0; i < thread_count; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~CallbackExecutor() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }
  CallbackExecutor(const CallbackExecutor&) = delete;
  CallbackExecutor& operator=(const CallbackExecutor&) = delete;

  // Never blocks. For work that something else bounds.
  void Add(std::function<void()> work) {
    absl::MutexLock lock(&mutex_);
    work_.push_back(std::move(work));
  }
  // Never blocks. False, and `work` is dropped, if `most_waiting` wait for a thread already.
  bool TryAdd(std::function<void()> work, size_t most_waiting) {
    absl::MutexLock lock(&mutex_);
    if (work_.size() >= most_waiting) return false;
    work_.push_back(std::move(work));
    return true;
  }

 private:
  void Run() {
    while (true) {
      std::function<void()> work;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(
            +[](CallbackExecutor* self) ABSL_EXCLUSIVE_LOCKS_REQUIRED(self->mutex_) {
              return self->stopping_ || !self->work_.empty();
            },
            this));
        if (work_.empty()) return;
        work = std::move(work_.front());
        work_.pop_front();
      }
      work();
    }
  }

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::function<void()>> work_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_CALLBACK_EXECUTOR_H_
