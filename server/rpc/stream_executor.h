// A few threads for the blocking reads behind streams: reactions of gRPC's callback API must not
// block.
#ifndef QPRUNER_SERVER_RPC_STREAM_EXECUTOR_H_
#define QPRUNER_SERVER_RPC_STREAM_EXECUTOR_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace qpruner::server {

// Thread-safe. Destroyed after all work that was added has run.
class StreamExecutor {
 public:
  explicit StreamExecutor(int thread_count) {
    for (int i = 0; i < thread_count; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~StreamExecutor() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }
  StreamExecutor(const StreamExecutor&) = delete;
  StreamExecutor& operator=(const StreamExecutor&) = delete;

  // Never blocks.
  void Add(std::function<void()> work) {
    absl::MutexLock lock(&mutex_);
    work_.push_back(std::move(work));
  }

 private:
  void Run() {
    while (true) {
      std::function<void()> work;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(
            +[](StreamExecutor* self) ABSL_EXCLUSIVE_LOCKS_REQUIRED(self->mutex_) {
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

#endif  // QPRUNER_SERVER_RPC_STREAM_EXECUTOR_H_
