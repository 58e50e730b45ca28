// Bounds how many streams of a kind are open at a time. Each holds something of the server's (a
// thread, a file, a piece of one) for as long as its peer cares to go on, so that without a bound
// one peer could take all of it.
#ifndef QPRUNER_SERVER_RPC_STREAM_LIMIT_H_
#define QPRUNER_SERVER_RPC_STREAM_LIMIT_H_

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/status_codec.h"

namespace qpruner::server {

// Thread-safe.
class StreamLimit {
 public:
  struct Options {
    // What is bounded, for people: "downloads".
    std::string what;
    // ErrorInfo of a refusal: "TOO_MANY_DOWNLOADS".
    std::string reason;
    int most = 0;
    // Of one holder, so that none can take them all.
    int most_of_a_holder = 0;
  };
  explicit StreamLimit(Options options) : options_(std::move(options)) {}

  // Held by a stream until it ends. The limit must outlive it.
  class Place {
   public:
    Place(StreamLimit& limit, std::string holder) : limit_(limit), holder_(std::move(holder)) {}
    ~Place() { limit_.Leave(holder_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    StreamLimit& limit_;
    const std::string holder_;
  };

  // `holder` names whose stream it is in a refusal: "projects/default".
  // RESOURCE_EXHAUSTED, with RetryInfo: there is none left.
  absl::StatusOr<std::unique_ptr<Place>> Take(const std::string& holder) {
    absl::MutexLock lock(&mutex_);
    const auto found = by_holder_.find(holder);
    const bool server_is_full = count_ >= options_.most;
    if (server_is_full ||
        (found != by_holder_.end() && found->second >= options_.most_of_a_holder)) {
      const std::string subject = server_is_full ? "server" : holder;
      return QuotaError(
          options_.reason, subject,
          absl::StrCat("Too many ", options_.what, " are open at a time, at most ",
                       server_is_full ? options_.most : options_.most_of_a_holder, ": ", subject),
          absl::Seconds(1));
    }
    ++by_holder_[holder];
    ++count_;
    return std::make_unique<Place>(*this, holder);
  }

  // How many places are taken.
  int count() {
    absl::MutexLock lock(&mutex_);
    return count_;
  }

 private:
  void Leave(const std::string& holder) {
    absl::MutexLock lock(&mutex_);
    --count_;
    const auto found = by_holder_.find(holder);
    if (--found->second == 0) by_holder_.erase(found);
  }

  const Options options_;
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, int> by_holder_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_STREAM_LIMIT_H_
