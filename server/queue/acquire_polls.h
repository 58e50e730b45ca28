// The long polls of workers that wait for a task.
#ifndef QPRUNER_SERVER_QUEUE_ACQUIRE_POLLS_H_
#define QPRUNER_SERVER_QUEUE_ACQUIRE_POLLS_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "qpruner/internal/v1/worker_service.pb.h"

namespace qpruner::server {

// Called exactly once. It must not call back into the queue.
using AcquireCallback =
    std::function<void(absl::StatusOr<internal::v1::AcquireTaskResponse> response)>;

struct AcquirePoll {
  int64_t id = 0;
  std::string worker;
  std::string incarnation;
  // The job whose prepared model the worker holds; empty: none.
  std::string prepared_job;
  // On the monotonic clock.
  absl::Duration deadline;
  AcquireCallback done;
};

// Thread-safe. A poll belongs to whoever took it out of the list: it calls `done`, outside of every
// lock.
class AcquirePolls {
 public:
  int64_t NewId();
  // Waits from now on. A worker waits once: `older` gets its earlier poll, if there is one. False,
  // and nothing changes: the list is closed.
  bool Add(AcquirePoll& poll, std::optional<AcquirePoll>& older);
  // Oldest first, without their callbacks.
  std::vector<AcquirePoll> List() const;
  // Nothing if it has ended.
  std::optional<AcquirePoll> Take(int64_t id);
  std::vector<AcquirePoll> TakeExpired(absl::Duration now);
  // Those of other processes of the worker.
  std::vector<AcquirePoll> TakeOfOtherProcesses(const std::string& worker,
                                                const std::string& incarnation);
  // Takes all, for good.
  std::vector<AcquirePoll> Close();

  bool empty() const;
  bool closed() const;
  std::optional<absl::Duration> NextDeadline() const;

 private:
  template <typename Condition>
  std::vector<AcquirePoll> TakeIf(Condition condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<AcquirePoll> polls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_ACQUIRE_POLLS_H_
