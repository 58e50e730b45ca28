// Bounds the log lines of one attempt that are stored: each is an event that lasts as long as its
// job, and how many there are is in the hands of the worker.
#ifndef QPRUNER_SERVER_QUEUE_LOG_ALLOWANCE_H_
#define QPRUNER_SERVER_QUEUE_LOG_ALLOWANCE_H_

#include <algorithm>
#include <utility>

#include "absl/time/time.h"

namespace qpruner::server {

// Of the lines of one call: what is stored, in this order.
struct LogTurn {
  // One line that says how many were left out in the minutes before, unless that is 0.
  int left_out_before = 0;
  // The first so many.
  int kept = 0;
  // One line that says how many were left out, unless that is 0.
  int left_out = 0;
};

// Not thread-safe.
class LogAllowance {
 public:
  // An engine of ours logs a few lines a stage.
  static constexpr int kLinesAMinute = 100;

  // `count` lines have come at `now`, on the monotonic clock. `is_last`: no others will.
  LogTurn Take(int count, absl::Duration now, bool is_last) {
    LogTurn turn;
    if (now - minute_begin_ >= absl::Minutes(1)) {
      minute_begin_ = now;
      taken_ = 0;
      turn.left_out_before = std::exchange(left_out_, 0);
    }
    turn.kept = std::min(count, kLinesAMinute - taken_);
    taken_ += turn.kept;
    left_out_ += count - turn.kept;
    if (is_last) turn.left_out = std::exchange(left_out_, 0);
    return turn;
  }

 private:
  absl::Duration minute_begin_ = -absl::InfiniteDuration();
  int taken_ = 0;
  int left_out_ = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_LOG_ALLOWANCE_H_
