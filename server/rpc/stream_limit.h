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
  explicit StreamLimit(Options options) : state_(std::make_shared<State>(std::move(options))) {}

 private:
  struct State {
    explicit State(Options options) : options(std::move(options)) {}
    const Options options;
    absl::Mutex mutex;
    int count ABSL_GUARDED_BY(mutex) = 0;
    std::map<std::string, int> by_holder ABSL_GUARDED_BY(mutex);
  };

 public:
  // Held by a stream until it ends. It may outlive the limit: what is left of a stream goes when
  // the last of its reads has come back, which may be after the services are gone.
  class Place {
   public:
    Place(std::shared_ptr<State> state, std::string holder)
        : state_(std::move(state)), holder_(std::move(holder)) {}
    ~Place() {
      absl::MutexLock lock(&state_->mutex);
      --state_->count;
      const auto found = state_->by_holder.find(holder_);
      if (--found->second == 0) state_->by_holder.erase(found);
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    const std::shared_ptr<State> state_;
    const std::string holder_;
  };

  // `holder` names whose stream it is in a refusal: "projects/default".
  // RESOURCE_EXHAUSTED, with RetryInfo: there is none left.
  absl::StatusOr<std::unique_ptr<Place>> Take(const std::string& holder) {
    State& state = *state_;
    const Options& options = state.options;
    absl::MutexLock lock(&state.mutex);
    const auto found = state.by_holder.find(holder);
    const bool server_is_full = state.count >= options.most;
    if (server_is_full ||
        (found != state.by_holder.end() && found->second >= options.most_of_a_holder)) {
      const std::string subject = server_is_full ? "server" : holder;
      return QuotaError(
          options.reason, subject,
          absl::StrCat("Too many ", options.what, " are open at a time, at most ",
                       server_is_full ? options.most : options.most_of_a_holder, ": ", subject),
          absl::Seconds(1));
    }
    ++state.by_holder[holder];
    ++state.count;
    return std::make_unique<Place>(state_, holder);
  }

  // How many places are taken.
  int count() {
    absl::MutexLock lock(&state_->mutex);
    return state_->count;
  }

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_STREAM_LIMIT_H_
