// Bounded exponential back-off with jitter.
#ifndef QPRUNER_BASE_BACKOFF_H_
#define QPRUNER_BASE_BACKOFF_H_

#include <algorithm>
#include <random>

#include "absl/time/time.h"

namespace qpruner {

// Not thread-safe.
class Backoff {
 public:
  struct Options {
    absl::Duration initial = absl::Milliseconds(100);
    absl::Duration maximum = absl::Seconds(5);
    double factor = 2.0;
  };
  Backoff(Options options, uint64_t seed) : options_(options), random_(seed) {}

  // The next delay: between half and all of the current step, so that clients spread out.
  absl::Duration Next() {
    const absl::Duration step = current_ == absl::ZeroDuration() ? options_.initial : current_;
    current_ = std::min(step * options_.factor, options_.maximum);
    return step * std::uniform_real_distribution<double>(0.5, 1.0)(random_);
  }
  void Reset() { current_ = absl::ZeroDuration(); }

 private:
  Options options_;
  absl::Duration current_ = absl::ZeroDuration();
  std::mt19937_64 random_;
};

}  // namespace qpruner

#endif  // QPRUNER_BASE_BACKOFF_H_
