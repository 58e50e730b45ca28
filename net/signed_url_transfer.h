// Reads content from where a server says that it lies, and writes it where it shall lie, instead of
// through the server.
#ifndef QPRUNER_NET_SIGNED_URL_TRANSFER_H_
#define QPRUNER_NET_SIGNED_URL_TRANSFER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <stop_token>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "net/http_client.h"

namespace qpruner {

// Thread-safe.
class SignedUrlTransfer {
 public:
  // `clock` must outlive it.
  explicit SignedUrlTransfer(Clock& clock) : clock_(clock) {}

  // Whether to ask for URLs. False for five minutes after one brought less than a MiB before it
  // failed, or took no content: a machine without a way to the storage then waits for it once, not
  // for each file.
  bool usable();
  // Not usable for five minutes: what came was wrong.
  void Pause();

  // Shows the bytes from `offset` on to `sink`, in order and never more than there should be;
  // `size_bytes` is the whole content's size. One request, without redirects. The bytes are not
  // checked. An error of `sink` ends it and is returned. CANCELLED: stopped. UNAVAILABLE, whatever
  // else it is (not reached, refused, broke off, nonsense): what `sink` got counts; go on by
  // another URL if usable(), else through the server. Messages name the host alone: the URL is a
  // secret.
  absl::Status Read(const std::string& url, int64_t offset, int64_t size_bytes,
                    const std::function<absl::Status(absl::string_view data)>& sink,
                    std::stop_token stop);

  // Stores `size_bytes` that `source` gives (as HttpRequest::source does), with one PUT. Errors of
  // `source` are returned, others as above.
  absl::Status Write(const std::string& url, const std::map<std::string, std::string>& headers,
                     int64_t size_bytes,
                     const std::function<absl::StatusOr<size_t>(char* buffer, size_t size)>& source,
                     std::stop_token stop);

 private:
  Clock& clock_;
  HttpClient http_;
  absl::Mutex mutex_;
  // On the monotonic clock.
  absl::Duration paused_until_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
};

}  // namespace qpruner

#endif  // QPRUNER_NET_SIGNED_URL_TRANSFER_H_
