// Files are kept as long as any job lists them.
//
// A file is stored before the job lists it: by an upload first, by the result of the task that
// uploaded it afterwards. In between nobody refers to it.
#ifndef QPRUNER_SERVER_QUEUE_ARTIFACT_REFERENCES_H_
#define QPRUNER_SERVER_QUEUE_ARTIFACT_REFERENCES_H_

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/artifacts/artifact_store.h"
#include "server/queue/queue_observer.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Thread-safe.
class ArtifactReferences {
 public:
  ArtifactReferences(JobStore& store, ArtifactStore& artifacts, QueueObserver& observer)
      : store_(store), artifacts_(artifacts), observer_(observer) {}

  // Held shared by whoever looks whether files are there and then makes a job list them; no file is
  // removed meanwhile by this process. Others are kept out by StoreTransaction::LockArtifacts.
  absl::Mutex& adding() ABSL_LOCK_RETURNED(mutex_) { return mutex_; }

  // Files stored at or before this time are listed by now or never will be: every task that is at
  // work was leased later. Of a moment: valid for files that are removed from then on.
  absl::StatusOr<absl::Time> SettledBefore(absl::Time now);

  // Removes the file if no job lists it and it was stored at or before `stored_until`. Returns
  // whether it did. Do not hold adding(). UNAVAILABLE.
  absl::StatusOr<bool> RemoveIfUnreferenced(const std::string& sha256, absl::Time stored_until);
  // The same; what fails or must wait is left to the collection (retention/).
  void TryRemove(const std::string& sha256, absl::Time stored_until);

 private:
  JobStore& store_;
  ArtifactStore& artifacts_;
  QueueObserver& observer_;
  absl::Mutex mutex_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_ARTIFACT_REFERENCES_H_
