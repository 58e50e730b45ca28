// Calls in a closed loop: each caller makes its next call when its last one was answered.
#ifndef QPRUNER_BENCH_LOAD_CLOSED_LOOP_H_
#define QPRUNER_BENCH_LOAD_CLOSED_LOOP_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace qpruner::load {

// The value below which the share `q` of `sorted` lies; 0 of nothing.
double Quantile(const std::vector<double>& sorted, double q);

struct CallStats {
  // Of the calls that succeeded, sorted.
  std::vector<double> milliseconds;
  int64_t failure_count = 0;
  std::string first_failure;
  absl::Duration duration;

  double rate() const { return milliseconds.size() / absl::ToDoubleSeconds(duration); }
};

// Thread-safe. No thread of its own: calls end on gRPC's threads, which make the next ones.
class ClosedLoop {
 public:
  // Makes one call, and calls `done` exactly once when it has ended, on any thread but not before
  // it returns.
  using StartCall = std::function<void(int caller, std::function<void(const grpc::Status&)> done)>;

  // Begins with one call for each caller.
  ClosedLoop(int callers, StartCall start_call);
  // Waits for the calls in flight.
  ~ClosedLoop() { Stop(); }
  ClosedLoop(const ClosedLoop&) = delete;
  ClosedLoop& operator=(const ClosedLoop&) = delete;

  // No further calls; waits for those in flight. The second time it returns the same.
  CallStats Stop();

 private:
  struct Caller {
    std::vector<double> milliseconds;
    int64_t failure_count = 0;
    std::string first_failure;
  };
  void Next(int caller);

  const StartCall start_call_;
  const absl::Time start_;
  std::atomic<bool> stopping_ = false;
  // Each used by the one call that its caller has in flight.
  std::vector<Caller> callers_;
  absl::Mutex mutex_;
  int running_ ABSL_GUARDED_BY(mutex_);
  absl::Time end_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
};

// `callers` for so long.
CallStats RunClosedLoop(int callers, absl::Duration duration, ClosedLoop::StartCall start_call);

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_CLOSED_LOOP_H_
