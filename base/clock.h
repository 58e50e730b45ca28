// Time as an injected dependency: only main() sees the real clock.
#ifndef QPRUNER_BASE_CLOCK_H_
#define QPRUNER_BASE_CLOCK_H_

#include "absl/time/time.h"

namespace qpruner {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall time, for records that people read. It may jump.
  virtual absl::Time Now() = 0;
  // Time since some fixed point, for leases and waits. It never goes back, and is not comparable
  // between processes.
  virtual absl::Duration Monotonic() = 0;
};

// The machine's clock. Lives for ever.
Clock& RealClock();

}  // namespace qpruner

#endif  // QPRUNER_BASE_CLOCK_H_
