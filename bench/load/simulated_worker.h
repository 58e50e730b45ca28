// A worker that speaks the real protocol and whose work is arithmetic
// (tests/testing/scripted_job.h) after a wait. A thousand of them fit into one process.
#ifndef QPRUNER_BENCH_LOAD_SIMULATED_WORKER_H_
#define QPRUNER_BENCH_LOAD_SIMULATED_WORKER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/alarm.h"
#include "grpcpp/client_context.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"

namespace qpruner::load {

// Hears what workers do. Called from gRPC's threads, by many workers at once.
class WorkerListener {
 public:
  virtual ~WorkerListener() = default;
  // A lease came; the same one may come again after a restart of the server.
  virtual void OnLeased(const internal::v1::AcquireTaskResponse& held) = 0;
  // What CompleteTask, or a heartbeat that ended the lease, was answered.
  virtual void OnEnded(const internal::v1::Lease& lease, const absl::Status& status) = 0;
};

// One task at a time, a heartbeat whenever the server wants one; a server that is away is waited
// for. It has no thread: each reply makes the next call.
class SimulatedWorker {
 public:
  // Begins. `stub` and `listener` must outlive it.
  SimulatedWorker(std::string name, absl::Duration task_duration,
                  internal::v1::WorkerService::Stub& stub, WorkerListener& listener);
  ~SimulatedWorker();
  SimulatedWorker(const SimulatedWorker&) = delete;
  SimulatedWorker& operator=(const SimulatedWorker&) = delete;

  // Begins to stop; the destructor waits for it.
  void Stop();

 private:
  using Lease = internal::v1::Lease;
  class Upload;

  void Register();
  void Acquire();
  // Heartbeats until the task's time is over, then brings the outputs.
  void Work();
  void Heartbeat();
  void UploadOutputs(size_t index);
  void Complete();
  void EndLease(const absl::Status& status);

  // Runs `next` after a while, unless it is stopped.
  void Later(absl::Duration wait, std::function<void()> next);
  // A context for the next call, which Stop cancels. Null: stopped, and there is no next call.
  std::shared_ptr<grpc::ClientContext> NewContext(absl::Duration limit);

  const std::string name_;
  const absl::Duration task_duration_;
  internal::v1::WorkerService::Stub& stub_;
  WorkerListener& listener_;

  // Of the step in work: there is one at a time.
  absl::Duration heartbeat_interval_ = absl::Seconds(1);
  internal::v1::AcquireTaskResponse held_;
  absl::Time task_end_;

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool idle_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_SIMULATED_WORKER_H_
