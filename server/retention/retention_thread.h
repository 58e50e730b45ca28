// Sweeps now, and then every so often.
#ifndef QPRUNER_SERVER_RETENTION_RETENTION_THREAD_H_
#define QPRUNER_SERVER_RETENTION_RETENTION_THREAD_H_

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/retention/retention_sweep.h"

namespace qpruner::server {

// Destroyed: the sweep ends after its step in work, which may be a call of a storage. `sweep` must
// outlive it.
class RetentionThread {
 public:
  RetentionThread(RetentionSweep& sweep, absl::Duration interval);
  ~RetentionThread();
  RetentionThread(const RetentionThread&) = delete;
  RetentionThread& operator=(const RetentionThread&) = delete;

 private:
  void Loop(RetentionSweep& sweep, absl::Duration interval);
  bool stopping();

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RETENTION_RETENTION_THREAD_H_
