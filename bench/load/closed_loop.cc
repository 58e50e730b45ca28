#include "bench/load/closed_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace qpruner::load {

double Quantile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

ClosedLoop::ClosedLoop(int callers, StartCall start_call)
    : start_call_(std::move(start_call)),
      start_(absl::Now()),
      callers_(static_cast<size_t>(callers)),
      running_(callers) {
  for (int caller = 0; caller < callers; ++caller) Next(caller);
}

void ClosedLoop::Next(int caller) {
  if (stopping_) {
    absl::MutexLock lock(&mutex_);
    --running_;
    return;
  }
  const absl::Time begin = absl::Now();
  start_call_(caller, [this, caller, begin](const grpc::Status& status) {
    Caller& of = callers_[static_cast<size_t>(caller)];
    if (status.ok()) {
      of.milliseconds.push_back(absl::ToDoubleMilliseconds(absl::Now() - begin));
    } else if (++of.failure_count == 1) {
      of.first_failure = absl::StrCat(status.error_code(), ": ", status.error_message());
    }
    Next(caller);
  });
}

CallStats ClosedLoop::Stop() {
  stopping_ = true;
  CallStats stats;
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* running) { return *running == 0; }, &running_));
    if (end_ == absl::InfiniteFuture()) end_ = absl::Now();
    stats.duration = end_ - start_;
  }
  for (const Caller& caller : callers_) {
    stats.milliseconds.insert(stats.milliseconds.end(), caller.milliseconds.begin(),
                              caller.milliseconds.end());
    stats.failure_count += caller.failure_count;
    if (stats.first_failure.empty()) stats.first_failure = caller.first_failure;
  }
  std::sort(stats.milliseconds.begin(), stats.milliseconds.end());
  return stats;
}

CallStats RunClosedLoop(int callers, absl::Duration duration, ClosedLoop::StartCall start_call) {
  ClosedLoop loop(callers, std::move(start_call));
  absl::SleepFor(duration);
  return loop.Stop();
}

}  // namespace qpruner::load
