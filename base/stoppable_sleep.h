// Waiting between tries.
#ifndef QPRUNER_BASE_STOPPABLE_SLEEP_H_
#define QPRUNER_BASE_STOPPABLE_SLEEP_H_

#include <stop_token>

#include "absl/time/time.h"

namespace qpruner {

// Waits in real time. False, at once: stopped.
bool SleepUnlessStopped(const std::stop_token& stop, absl::Duration duration);

}  // namespace qpruner

#endif  // QPRUNER_BASE_STOPPABLE_SLEEP_H_
