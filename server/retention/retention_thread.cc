#include "server/retention/retention_thread.h"

#include <algorithm>
#include <random>

#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// A store or a disk that is away is soon back.
constexpr absl::Duration kRetryInterval = absl::Minutes(1);

}  // namespace

RetentionThread::RetentionThread(RetentionSweep& sweep, absl::Duration interval)
    : thread_([this, &sweep, interval] { Loop(sweep, interval); }) {}

RetentionThread::~RetentionThread() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

bool RetentionThread::stopping() {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void RetentionThread::Loop(RetentionSweep& sweep, absl::Duration interval) {
  interval = std::max(interval, absl::Seconds(1));
  // Servers that were started together do not list the same files at the same time for ever.
  std::mt19937_64 random(std::random_device{}());
  std::uniform_real_distribution<double> spread(0.9, 1.1);
  while (true) {
    const absl::Status swept = sweep.Run([this] { return stopping(); });
    if (stopping()) return;
    if (!swept.ok()) spdlog::warn("the sweep was not finished: {}", swept.ToString());
    const absl::Duration wait =
        (swept.ok() ? interval : std::min(interval, kRetryInterval)) * spread(random);
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), wait)) return;
  }
}

}  // namespace qpruner::server
