// Reads of events for watchers, shared: who asks for the same events of the same job before the
// read begins gets the result of one read.
//
// A thousand watchers that have all seen the last event, and are told of the next at once, cost the
// store one read or a few, not a thousand. Each still gets what is committed by the time it asks:
// its read begins after that. So it is as good as a read of its own.
#ifndef QPRUNER_SERVER_RPC_EVENT_READS_H_
#define QPRUNER_SERVER_RPC_EVENT_READS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/resource_name.h"
#include "qpruner/v1/job.pb.h"
#include "server/queue/watch_hub.h"
#include "server/rpc/callback_executor.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// What a read brought. Not changed any more: many streams write from it.
struct EventBatch {
  // NOT_FOUND: the job is gone. UNAVAILABLE: the store is, or the server stops; such a batch may
  // have events all the same.
  absl::Status status;
  std::vector<v1::JobEvent> events;
  // There may be more at once.
  bool is_full = false;
  // The job is finished, and these are its last events.
  bool at_end = false;
};

// Thread-safe. Destroyed after all reads that were asked for.
class EventReads {
 public:
  using Reader = std::function<EventBatch(const JobName& job, int64_t after_sequence)>;
  using Done = std::function<void(const std::shared_ptr<const EventBatch>&)>;

  // `reader` blocks one of so many threads.
  EventReads(Reader reader, int thread_count)
      : reader_(std::move(reader)), executor_(thread_count) {}
  EventReads(const EventReads&) = delete;
  EventReads& operator=(const EventReads&) = delete;

  // Never blocks. Calls `done` once, on one of the threads: it must be quick.
  void Ask(const JobName& job, int64_t after_sequence, Done done);

 private:
  using Key = std::pair<std::string, int64_t>;
  void Read(const JobName& job, int64_t after_sequence);

  const Reader reader_;
  absl::Mutex mutex_;
  // Reads that have not begun, and who waits for them.
  std::map<Key, std::vector<Done>> waiting_ ABSL_GUARDED_BY(mutex_);
  // Last: it ends before what its threads use.
  CallbackExecutor executor_;
};

// Reads from the store, until the hub is closed. Both must outlive it.
EventReads::Reader ReadStoredEvents(JobStore& store, const WatchHub& hub);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_EVENT_READS_H_
