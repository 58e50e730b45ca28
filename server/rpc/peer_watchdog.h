// Ends calls whose peer keeps the server waiting.
//
// A call that waits for its peer's next message, or for its peer to take the next one, holds a
// thread or memory meanwhile. Keepalive does not help: it finds peers that are dead, not those that
// answer pings and do nothing else.
#ifndef QPRUNER_SERVER_RPC_PEER_WATCHDOG_H_
#define QPRUNER_SERVER_RPC_PEER_WATCHDOG_H_

#include <cstddef>
#include <functional>
#include <list>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "grpcpp/server_context.h"

namespace qpruner::server {

// Thread-safe. Must outlive its Waits.
class PeerWatchdog {
 private:
  struct Entry;

 public:
  // `patience` is what one wait may take, by `clock`. `look_interval` is how often, in real time, a
  // thread of its own looks; infinite: Look is called by somebody else.
  PeerWatchdog(Clock& clock, absl::Duration patience, absl::Duration look_interval);
  PeerWatchdog(const PeerWatchdog&) = delete;
  PeerWatchdog& operator=(const PeerWatchdog&) = delete;

  // While it lives, the peer is waited for. If that takes too long, `end_call` is called, once, on
  // the thread that looks. The destructor does not wait for that, as it may be called under locks
  // that what follows from the call's end needs: so `end_call` keeps what it uses (EndingOf).
  class Wait {
   public:
    Wait(PeerWatchdog& watchdog, std::function<void()> end_call);
    ~Wait();
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;

   private:
    PeerWatchdog& watchdog_;
    std::list<Entry>::iterator entry_;
  };

  absl::Duration patience() const { return patience_; }

  // How many peers are waited for now.
  size_t waiting();

  // Ends the calls that have waited too long.
  void Look();

 private:
  struct Entry {
    absl::Duration since;
    std::function<void()> end_call;  // Null: it was called.
  };

  Clock& clock_;
  const absl::Duration patience_;
  absl::Mutex mutex_;
  // The oldest first: all may take equally long.
  std::list<Entry> waits_ ABSL_GUARDED_BY(mutex_);
  std::jthread thread_;  // Last: it uses all of the above.
};

// Ends the call from outside of its handler, and may be called after it has ended: its peer gets
// UNAVAILABLE with `why`, whatever was still to be sent, and reads and writes that wait give up.
// The handler's own status is not sent any more. (gRPC's TryCancel would tell the peer CANCELLED,
// which it did not ask for; neither can carry details.)
std::function<void()> EndingOf(grpc::ServerContextBase& context, std::string why);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_PEER_WATCHDOG_H_
