// Ctrl-C for a call that blocks.
#ifndef QPRUNER_CLIENT_CANCEL_ON_SIGNAL_H_
#define QPRUNER_CLIENT_CANCEL_ON_SIGNAL_H_

#include <atomic>
#include <thread>

#include "absl/time/time.h"
#include "client/cancellation.h"
#include "client/signal_queue.h"

namespace qpruner {

// While it lives, a signal of the queue, which nobody else may read meanwhile, cancels.
class CancelOnSignal {
 public:
  explicit CancelOnSignal(SignalQueue& signals)
      : signals_(signals), reader_([this] {
          while (!done_) {
            if (signals_.Next(absl::Hours(1)) != 0) cancellation_.Cancel();
          }
        }) {}
  ~CancelOnSignal() {
    done_ = true;
    signals_.Wake();
    reader_.join();
  }
  CancelOnSignal(const CancelOnSignal&) = delete;
  CancelOnSignal& operator=(const CancelOnSignal&) = delete;

  Cancellation& cancellation() { return cancellation_; }

 private:
  SignalQueue& signals_;
  Cancellation cancellation_;
  std::atomic<bool> done_ = false;
  std::thread reader_;
};

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_CANCEL_ON_SIGNAL_H_
