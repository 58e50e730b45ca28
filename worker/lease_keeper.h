// Keeps the lease of one task alive while it is worked on.
#ifndef QPRUNER_WORKER_LEASE_KEEPER_H_
#define QPRUNER_WORKER_LEASE_KEEPER_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "qpruner/internal/v1/engine.pb.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"

namespace qpruner::worker {

// Sends heartbeats on a thread of its own, from construction on, and carries progress with them.
// Thread-safe.
class LeaseKeeper {
 public:
  struct Options {
    absl::Duration lease_duration;
    absl::Duration heartbeat_interval;
  };
  // Why the task must be stopped.
  enum class Loss {
    kNone,
    // The server wants it ended: complete it with CANCELLED.
    kAbortRequested,
    // The server wants it back: the job is paused.
    kReturnRequested,
    // The server has given the task away or forgotten it: nothing more to say about it.
    kSuperseded,
    // No heartbeat came through for the whole lease: the server will give the task away.
    kExpired,
  };

  // `on_lost` is called at most once, from the keeper's thread, and must not wait for the keeper.
  // The lease counts from the last heartbeat that was answered, at the time it was sent: so it
  // never ends here later than at the server.
  LeaseKeeper(internal::v1::WorkerService::StubInterface& server, Clock& clock,
              internal::v1::Lease lease, Options options, std::function<void()> on_lost);
  // Ends the heartbeats, also one in flight.
  ~LeaseKeeper();

  // What the next heartbeat tells. Log lines are told once; only the newest hundred are kept.
  void Report(const internal::v1::EngineReply::TaskProgress& progress);
  // The lines of which no heartbeat was answered: they go with the end of the task. Call after the
  // last Report.
  std::vector<v1::JobEvent::LogLine> TakeLogs();
  Loss loss() const;

 private:
  void KeepAlive(std::stop_token stop);
  void Lose(Loss loss);

  internal::v1::WorkerService::StubInterface& server_;
  Clock& clock_;
  const internal::v1::Lease lease_;
  const Options options_;
  const std::function<void()> on_lost_;

  mutable std::mutex mutex_;
  // State below is protected by mutex_.
  std::condition_variable_any wake_;
  double fraction_ = 0;
  std::string message_;
  std::vector<v1::JobEvent::LogLine> logs_;
  // Those of a heartbeat that has not been answered.
  std::vector<v1::JobEvent::LogLine> sent_logs_;
  Loss loss_ = Loss::kNone;

  std::jthread thread_;  // Last: it uses all of the above.
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_LEASE_KEEPER_H_
