// Prometheus metrics of the server. docs/operations.md lists them for operators; names follow
// Prometheus' conventions (base units, `_total` for counters).
//
//   qpruner_jobs{state}                            gauge      jobs now in each state
//   qpruner_tasks{state}                           gauge      tasks now in each state
//   qpruner_queue_depth                            gauge      tasks that wait for a worker
//   qpruner_workers                                gauge      workers heard from within their lease
//   qpruner_watchers                               gauge      open WatchJob streams
//   qpruner_leases_acquired_total                  counter    tasks handed to workers
//   qpruner_leases_expired_total                   counter    leases that ended without a heartbeat
//   qpruner_task_retries_total                     counter    attempts queued again
//   qpruner_quota_refusals_total{reason}           counter    jobs refused for a quota
//   qpruner_jobs_finished_total{state}             counter    jobs that entered a final state
//   qpruner_jobs_expired_total                     counter    jobs deleted by --keep-finished-jobs
//   qpruner_artifacts_removed_total                counter    files removed that no job listed
//   qpruner_artifact_removed_bytes_total           counter    their bytes
//   qpruner_stage_duration_seconds{stage}          histogram  wall time of finished stages
//   qpruner_rpcs_total{method,code}                counter    calls that ended
//   qpruner_rpc_duration_seconds{method}           histogram  from the call's start to its status
//   qpruner_store_up                               gauge      1 if the last scrape could read the
//   store
//
// Counters start at 0 with the process; gauges are read from the store at each scrape.
#ifndef QPRUNER_SERVER_METRICS_SERVER_METRICS_H_
#define QPRUNER_SERVER_METRICS_SERVER_METRICS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/support/server_interceptor.h"
#include "server/queue/job_queue.h"
#include "server/queue/queue_observer.h"
#include "server/queue/watch_hub.h"
#include "server/store/job_store.h"

namespace prometheus {
class Collectable;
class Registry;
}  // namespace prometheus

namespace qpruner::server {

// Thread-safe.
class ServerMetrics final : public QueueObserver {
 public:
  ServerMetrics();
  ~ServerMetrics() override;

  void OnLeaseAcquired() override;
  void OnLeaseExpired() override;
  void OnTaskRetried() override;
  void OnQuotaRefusal(const std::string& reason) override;
  void OnStageFinished(v1::CompressionJob::Stage stage, absl::Duration duration) override;
  void OnJobFinished(v1::CompressionJob::State state) override;
  void OnArtifactRemoved(int64_t size_bytes) override;
  void OnJobExpired() override;

  // Counts the calls of a gRPC server. Ask once; must outlive the server.
  std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> CallCounter();

  // Calls of that server that have begun and not ended, streams among them.
  int64_t open_calls() const { return open_calls_; }

  std::shared_ptr<prometheus::Registry> registry() const { return registry_; }

 private:
  struct Families;
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<Families> families_;
  std::atomic<int64_t> open_calls_ = 0;
};

// The gauges that are read at each scrape. The arguments must outlive it.
std::shared_ptr<prometheus::Collectable> MakeStoreGauges(JobStore& store, JobQueue& queue,
                                                         WatchHub& watches);

// Serves /metrics while it lives.
class MetricsEndpoint {
 public:
  // `address` is HOST:PORT; port 0 lets the system choose. UNAVAILABLE: it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(
      const std::string& address, const ServerMetrics& metrics,
      std::shared_ptr<prometheus::Collectable> gauges);
  ~MetricsEndpoint();
  int port() const;

 private:
  struct State;
  explicit MetricsEndpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_METRICS_SERVER_METRICS_H_
