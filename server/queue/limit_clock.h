// The time that limits count by: it begins as the wall clock's and goes on with the monotonic
// clock, so that a wall clock that is set, forward or back, ends no job and spares none.
//
// What records hold of it (waiting_since, limit_time and so on) must mean the same to the next
// process. A store that one server owns keeps by how much it is ahead of the wall clock
// (JobStore::KeepLimitClockOffset). Servers that share a store each begin with their wall clocks,
// which must agree.
#ifndef QPRUNER_SERVER_QUEUE_LIMIT_CLOCK_H_
#define QPRUNER_SERVER_QUEUE_LIMIT_CLOCK_H_

#include "absl/time/time.h"
#include "base/clock.h"

namespace qpruner::server {

// Immutable, so thread-safe.
class LimitClock {
 public:
  // `offset`: from the wall clock of now.
  LimitClock(Clock& clock, absl::Duration offset)
      : clock_(clock), start_(clock.Now() + offset - clock.Monotonic()) {}

  absl::Time Now() const { return start_ + clock_.Monotonic(); }
  // How far ahead of the wall clock it is now.
  absl::Duration Offset() const { return Now() - clock_.Now(); }

 private:
  Clock& clock_;
  // When the monotonic clock was 0.
  const absl::Time start_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_LIMIT_CLOCK_H_
