// Follows a job to its end and shows it: drawn live on a terminal, plain lines or JSON elsewhere.
#ifndef QPRUNER_CLIENT_JOB_FOLLOWER_H_
#define QPRUNER_CLIENT_JOB_FOLLOWER_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/job_client.h"
#include "client/job_view.h"
#include "client/signal_queue.h"
#include "client/terminal.h"

namespace qpruner {

// What a client's retries have to say, carried from its threads to the follower. Thread-safe.
class ConnectionNotice {
 public:
  void Set(std::string text) {
    absl::MutexLock lock(&mutex_);
    text_ = std::move(text);
  }
  std::string Get() {
    absl::MutexLock lock(&mutex_);
    return text_;
  }

 private:
  absl::Mutex mutex_;
  std::string text_ ABSL_GUARDED_BY(mutex_);
};

enum class FollowOutput {
  // Drawn again and again.
  kLive,
  // A line for what is worth one.
  kPlain,
  // A JSON document a line for every event.
  kJsonLines,
  // Nothing.
  kQuiet,
};

enum class InterruptPolicy {
  // The first Ctrl-C cancels the job, the second gives up waiting for it.
  kCancelJob,
  // Ctrl-C leaves the job alone after a moment in which a second one cancels it.
  kLeaveJob,
};

struct FollowOptions {
  FollowOutput output = FollowOutput::kPlain;
  InterruptPolicy interrupt = InterruptPolicy::kLeaveJob;
  Terminal terminal;
  int64_t after_sequence = 0;
  // Gets what is to be shown.
  std::function<void(absl::string_view)> write;
  // Looked at several times a second; what it says ends the watch.
  std::function<absl::Status()> check;
};

struct FollowResult {
  // OK: the job has ended. CANCELLED: interrupted, the job goes on (or its end was not waited for).
  absl::Status status;
  JobView view;
};

// Blocks. `job` names what is shown before the first event.
FollowResult FollowJob(JobClient& client, const v1::CompressionJob& job, SignalQueue& signals,
                       ConnectionNotice& notice, const FollowOptions& options);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JOB_FOLLOWER_H_
