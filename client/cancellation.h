// Ends a call of the client library from another thread.
#ifndef QPRUNER_CLIENT_CANCELLATION_H_
#define QPRUNER_CLIENT_CANCELLATION_H_

#include <stop_token>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"

namespace qpruner {

// Thread-safe. Once cancelled, for ever.
class Cancellation {
 public:
  void Cancel() {
    stop_.request_stop();
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (context_ != nullptr) context_->TryCancel();
  }
  // Stopped once cancelled.
  std::stop_token token() const { return stop_.get_token(); }
  bool cancelled() {
    absl::MutexLock lock(&mutex_);
    return cancelled_;
  }
  // Waits until cancelled, at most `timeout` of real time. True: it is.
  bool WaitFor(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), timeout);
  }

  // While it lives, Cancel() also ends the call of `context`. One at a time.
  class Attachment {
   public:
    Attachment(Cancellation* cancellation, grpc::ClientContext* context)
        : cancellation_(cancellation) {
      if (cancellation_ == nullptr) return;
      absl::MutexLock lock(&cancellation_->mutex_);
      cancellation_->context_ = context;
      if (cancellation_->cancelled_) context->TryCancel();
    }
    ~Attachment() {
      if (cancellation_ == nullptr) return;
      absl::MutexLock lock(&cancellation_->mutex_);
      cancellation_->context_ = nullptr;
    }
    Attachment(const Attachment&) = delete;
    Attachment& operator=(const Attachment&) = delete;

   private:
    Cancellation* const cancellation_;
  };

 private:
  std::stop_source stop_;
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_CANCELLATION_H_
