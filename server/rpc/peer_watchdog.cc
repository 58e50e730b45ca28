#include "server/rpc/peer_watchdog.h"

#include <utility>

#include "base/stoppable_sleep.h"
#include "grpc/grpc.h"

namespace qpruner::server {

PeerWatchdog::PeerWatchdog(Clock& clock, absl::Duration patience, absl::Duration look_interval)
    : clock_(clock), patience_(patience) {
  if (look_interval == absl::InfiniteDuration()) return;
  thread_ = std::jthread([this, look_interval](const std::stop_token& stop) {
    while (SleepUnlessStopped(stop, look_interval)) Look();
  });
}

size_t PeerWatchdog::waiting() {
  absl::MutexLock lock(&mutex_);
  return waits_.size();
}

void PeerWatchdog::Look() {
  absl::MutexLock lock(&mutex_);
  const absl::Duration too_old = clock_.Monotonic() - patience_;
  for (auto entry = waits_.begin(); entry != waits_.end() && entry->since <= too_old;) {
    if (entry->state == Entry::kWaiting) {
      entry->state = Entry::kEnding;
      mutex_.Unlock();
      entry->end_call();
      mutex_.Lock();
      // Its Wait, and so the entry, stays until now.
      entry->state = Entry::kEnded;
      ended_.SignalAll();
    }
    ++entry;
  }
}

PeerWatchdog::Wait::Wait(PeerWatchdog& watchdog, std::function<void()> end_call)
    : watchdog_(watchdog) {
  absl::MutexLock lock(&watchdog_.mutex_);
  entry_ = watchdog_.waits_.insert(watchdog_.waits_.end(), {.since = watchdog_.clock_.Monotonic(),
                                                            .end_call = std::move(end_call)});
}

PeerWatchdog::Wait::~Wait() {
  absl::MutexLock lock(&watchdog_.mutex_);
  while (entry_->state == Entry::kEnding) watchdog_.ended_.Wait(&watchdog_.mutex_);
  watchdog_.waits_.erase(entry_);
}

void EndCall(grpc::ServerContextBase& context, const std::string& why) {
  grpc_call_cancel_with_status(context.c_call(), GRPC_STATUS_UNAVAILABLE, why.c_str(), nullptr);
}

}  // namespace qpruner::server
