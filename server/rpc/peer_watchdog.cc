#include "server/rpc/peer_watchdog.h"

#include <memory>
#include <utility>
#include <vector>

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
  std::vector<std::function<void()>> overdue;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration too_old = clock_.Monotonic() - patience_;
    for (Entry& entry : waits_) {
      if (entry.since > too_old) break;
      if (entry.end_call) overdue.push_back(std::exchange(entry.end_call, nullptr));
    }
  }
  // gRPC may run what follows from a call's end on this thread, the end of its Wait included.
  for (const std::function<void()>& end_call : overdue) end_call();
}

PeerWatchdog::Wait::Wait(PeerWatchdog& watchdog, std::function<void()> end_call)
    : watchdog_(watchdog) {
  absl::MutexLock lock(&watchdog_.mutex_);
  entry_ = watchdog_.waits_.insert(watchdog_.waits_.end(), {.since = watchdog_.clock_.Monotonic(),
                                                            .end_call = std::move(end_call)});
}

PeerWatchdog::Wait::~Wait() {
  absl::MutexLock lock(&watchdog_.mutex_);
  watchdog_.waits_.erase(entry_);
}

std::function<void()> EndingOf(grpc::ServerContextBase& context, std::string why) {
  grpc_call_ref(context.c_call());
  const std::shared_ptr<grpc_call> call(context.c_call(), grpc_call_unref);
  return [call, why = std::move(why)] {
    grpc_call_cancel_with_status(call.get(), GRPC_STATUS_UNAVAILABLE, why.c_str(), nullptr);
  };
}

}  // namespace qpruner::server
