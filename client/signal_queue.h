// Signals as something to read, so that no work is done in a signal handler.
#ifndef QPRUNER_CLIENT_SIGNAL_QUEUE_H_
#define QPRUNER_CLIENT_SIGNAL_QUEUE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qpruner {

// One in a process. Make it before other threads start, so that they too leave SIGINT, SIGTERM and
// SIGHUP to it.
class SignalQueue {
 public:
  static absl::StatusOr<std::unique_ptr<SignalQueue>> Create();
  // Lets signals have their usual effect again.
  ~SignalQueue();
  SignalQueue(const SignalQueue&) = delete;
  SignalQueue& operator=(const SignalQueue&) = delete;

  // The next signal; 0 if there is none within `timeout` or once Wake was called.
  int Next(absl::Duration timeout);
  // Ends the current or next Next early. Thread-safe.
  void Wake();

 private:
  SignalQueue(int signals, int wake) : signals_(signals), wake_(wake) {}
  const int signals_;
  const int wake_;
};

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_SIGNAL_QUEUE_H_
