// What the queue tells about itself, for metrics.
#ifndef QPRUNER_SERVER_QUEUE_QUEUE_OBSERVER_H_
#define QPRUNER_SERVER_QUEUE_QUEUE_OBSERVER_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner::server {

// Called after the commit that made it true, possibly from several threads at once. Must not block.
class QueueObserver {
 public:
  virtual ~QueueObserver() = default;
  virtual void OnLeaseAcquired() {}
  virtual void OnLeaseExpired() {}
  virtual void OnTaskRetried() {}
  // A stage ended in success after `duration`, waiting for workers included.
  virtual void OnStageFinished(v1::CompressionJob::Stage stage, absl::Duration duration) {}
  // A job was refused for a quota; `reason` is one of ErrorInfo's.
  virtual void OnQuotaRefusal(const std::string& reason) {}
  // A job entered a final state.
  virtual void OnJobFinished(v1::CompressionJob::State state) {}
  // The bytes of an artifact that no job lists are gone.
  virtual void OnArtifactRemoved(int64_t size_bytes) {}
  // A finished job was deleted because it was kept for long enough.
  virtual void OnJobExpired() {}
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_QUEUE_OBSERVER_H_
