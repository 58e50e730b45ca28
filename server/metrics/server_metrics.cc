#include "server/metrics/server_metrics.h"

#include <algorithm>
#include <array>
#include <exception>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "prometheus/collectable.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/family.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace qpruner::server {
namespace {

using internal::v1::TaskRecord;

// Stages take from a second (the shipped model) to a day.
const prometheus::Histogram::BucketBoundaries kStageBuckets = {
    0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600};
// From a read (under a millisecond) through an fsync to a long poll.
const prometheus::Histogram::BucketBoundaries kCallBuckets = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 60};

prometheus::MetricFamily GaugeFamily(const std::string& name, const std::string& help) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = prometheus::MetricType::Gauge;
  return family;
}

void AddGauge(prometheus::MetricFamily& family, double value, const std::string& state = "") {
  prometheus::ClientMetric metric;
  metric.gauge.value = value;
  if (!state.empty()) metric.label.push_back({"state", absl::AsciiStrToLower(state)});
  family.metric.push_back(std::move(metric));
}

class StoreGauges final : public prometheus::Collectable {
 public:
  StoreGauges(JobStore& store, JobQueue& queue, WatchHub& watches)
      : store_(store), queue_(queue), watches_(watches) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    StoreCounts counts;
    const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(counts, reader.Counts());
      return absl::OkStatus();
    });
    std::vector<prometheus::MetricFamily> families;
    auto up = GaugeFamily("qpruner_store_up", "1 if the last scrape could read the store.");
    AddGauge(up, status.ok() ? 1 : 0);
    families.push_back(std::move(up));
    auto workers = GaugeFamily("qpruner_workers", "Workers heard from within their lease.");
    AddGauge(workers, static_cast<double>(queue_.LiveWorkers().size()));
    families.push_back(std::move(workers));
    auto watchers = GaugeFamily("qpruner_watchers", "Open WatchJob streams.");
    AddGauge(watchers, static_cast<double>(watches_.watcher_count()));
    families.push_back(std::move(watchers));
    // Better absent than wrong.
    if (!status.ok()) return families;

    // Every state is there from the first scrape, so that rates and alerts have no gaps.
    auto jobs = GaugeFamily("qpruner_jobs", "Jobs now in each state.");
    for (int state = v1::CompressionJob::PENDING; state <= v1::CompressionJob::State_MAX; ++state) {
      const auto value = static_cast<v1::CompressionJob::State>(state);
      AddGauge(jobs, static_cast<double>(counts.jobs[value]),
               v1::CompressionJob::State_Name(value));
    }
    families.push_back(std::move(jobs));
    auto tasks = GaugeFamily("qpruner_tasks", "Tasks now in each state.");
    for (int state = TaskRecord::QUEUED; state <= TaskRecord::State_MAX; ++state) {
      const auto value = static_cast<TaskRecord::State>(state);
      AddGauge(tasks, static_cast<double>(counts.tasks[value]), TaskRecord::State_Name(value));
    }
    families.push_back(std::move(tasks));
    auto depth = GaugeFamily("qpruner_queue_depth", "Tasks that wait for a worker.");
    AddGauge(depth, static_cast<double>(counts.tasks[TaskRecord::QUEUED]));
    families.push_back(std::move(depth));
    return families;
  }

 private:
  JobStore& store_;
  JobQueue& queue_;
  WatchHub& watches_;
};

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : "OTHER";
}

// The series of one method, found once: looking one up by its labels costs more than counting.
class MethodSeries {
 public:
  MethodSeries(prometheus::Family<prometheus::Counter>& ended,
               prometheus::Family<prometheus::Histogram>& durations, std::string method)
      : ended_(ended),
        duration_(durations.Add({{"method", method}}, kCallBuckets)),
        method_(std::move(method)) {}

  // A series begins with the first call that ends so.
  prometheus::Counter& Ended(grpc::StatusCode code) {
    std::atomic<prometheus::Counter*>& known =
        by_code_[std::clamp<int>(code, 0, grpc::StatusCode::UNAUTHENTICATED)];
    prometheus::Counter* counter = known.load(std::memory_order_acquire);
    if (counter == nullptr) {
      counter = &ended_.Add({{"method", method_}, {"code", CodeName(code)}});
      known.store(counter, std::memory_order_release);
    }
    return *counter;
  }
  prometheus::Histogram& duration() { return duration_; }

 private:
  prometheus::Family<prometheus::Counter>& ended_;
  prometheus::Histogram& duration_;
  const std::string method_;
  std::array<std::atomic<prometheus::Counter*>, grpc::StatusCode::UNAUTHENTICATED + 1> by_code_ =
      {};
};

}  // namespace

struct ServerMetrics::Families {
  explicit Families(prometheus::Registry& registry)
      : leases_acquired(prometheus::BuildCounter()
                            .Name("qpruner_leases_acquired_total")
                            .Help("Tasks handed to workers.")
                            .Register(registry)
                            .Add({})),
        leases_expired(prometheus::BuildCounter()
                           .Name("qpruner_leases_expired_total")
                           .Help("Leases that ended without a heartbeat.")
                           .Register(registry)
                           .Add({})),
        task_retries(prometheus::BuildCounter()
                         .Name("qpruner_task_retries_total")
                         .Help("Attempts that ended and were queued again.")
                         .Register(registry)
                         .Add({})),
        quota_refusals(prometheus::BuildCounter()
                           .Name("qpruner_quota_refusals_total")
                           .Help("Jobs refused for a quota.")
                           .Register(registry)),
        jobs_finished(prometheus::BuildCounter()
                          .Name("qpruner_jobs_finished_total")
                          .Help("Jobs that entered a final state.")
                          .Register(registry)),
        jobs_expired(prometheus::BuildCounter()
                         .Name("qpruner_jobs_expired_total")
                         .Help("Finished jobs deleted because they were kept for long enough.")
                         .Register(registry)
                         .Add({})),
        artifacts_removed(prometheus::BuildCounter()
                              .Name("qpruner_artifacts_removed_total")
                              .Help("Stored files removed because no job listed them.")
                              .Register(registry)
                              .Add({})),
        artifact_removed_bytes(prometheus::BuildCounter()
                                   .Name("qpruner_artifact_removed_bytes_total")
                                   .Help("Bytes of stored files removed.")
                                   .Register(registry)
                                   .Add({})),
        stage_duration(prometheus::BuildHistogram()
                           .Name("qpruner_stage_duration_seconds")
                           .Help("Wall time of finished stages, waiting for workers included.")
                           .Register(registry)),
        rpcs(prometheus::BuildCounter()
                 .Name("qpruner_rpcs_total")
                 .Help("Calls that ended.")
                 .Register(registry)),
        rpc_duration(prometheus::BuildHistogram()
                         .Name("qpruner_rpc_duration_seconds")
                         .Help("From the start of a call to its status.")
                         .Register(registry)) {}

  prometheus::Counter& leases_acquired;
  prometheus::Counter& leases_expired;
  prometheus::Counter& task_retries;
  prometheus::Family<prometheus::Counter>& quota_refusals;
  prometheus::Family<prometheus::Counter>& jobs_finished;
  prometheus::Counter& jobs_expired;
  prometheus::Counter& artifacts_removed;
  prometheus::Counter& artifact_removed_bytes;
  prometheus::Family<prometheus::Histogram>& stage_duration;
  prometheus::Family<prometheus::Counter>& rpcs;
  prometheus::Family<prometheus::Histogram>& rpc_duration;
};

ServerMetrics::ServerMetrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      families_(std::make_unique<Families>(*registry_)) {}
ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::OnLeaseAcquired() { families_->leases_acquired.Increment(); }
void ServerMetrics::OnLeaseExpired() { families_->leases_expired.Increment(); }
void ServerMetrics::OnTaskRetried() { families_->task_retries.Increment(); }

void ServerMetrics::OnQuotaRefusal(const std::string& reason) {
  families_->quota_refusals.Add({{"reason", absl::AsciiStrToLower(reason)}}).Increment();
}

void ServerMetrics::OnStageFinished(v1::CompressionJob::Stage stage, absl::Duration duration) {
  families_->stage_duration
      .Add({{"stage", absl::AsciiStrToLower(v1::CompressionJob::Stage_Name(stage))}}, kStageBuckets)
      .Observe(absl::ToDoubleSeconds(duration));
}

void ServerMetrics::OnJobFinished(v1::CompressionJob::State state) {
  families_->jobs_finished
      .Add({{"state", absl::AsciiStrToLower(v1::CompressionJob::State_Name(state))}})
      .Increment();
}

void ServerMetrics::OnArtifactRemoved(int64_t size_bytes) {
  families_->artifacts_removed.Increment();
  families_->artifact_removed_bytes.Increment(static_cast<double>(size_bytes));
}
void ServerMetrics::OnJobExpired() { families_->jobs_expired.Increment(); }

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>
ServerMetrics::CallCounter() {
  using grpc::experimental::InterceptionHookPoints;
  using grpc::experimental::Interceptor;
  using grpc::experimental::InterceptorBatchMethods;

  class Call final : public Interceptor {
   public:
    Call(MethodSeries& series, std::atomic<int64_t>& open)
        : series_(series), open_(open), start_(RealClock().Monotonic()) {
      ++open_;
    }
    ~Call() override { --open_; }
    void Intercept(InterceptorBatchMethods* methods) override {
      if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
        series_.Ended(methods->GetSendStatus().error_code()).Increment();
        series_.duration().Observe(absl::ToDoubleSeconds(RealClock().Monotonic() - start_));
      }
      methods->Proceed();
    }

   private:
    MethodSeries& series_;
    std::atomic<int64_t>& open_;
    const absl::Duration start_;
  };
  class Factory final : public grpc::experimental::ServerInterceptorFactoryInterface {
   public:
    Factory(Families& families, std::atomic<int64_t>& open) : families_(families), open_(open) {}
    Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
      // Only known methods: a client must not be able to make up label values.
      const absl::string_view method = info->method();
      if (!absl::StartsWith(method, "/qpruner.")) return nullptr;
      absl::MutexLock lock(&mutex_);
      std::unique_ptr<MethodSeries>& series = series_[method];
      if (series == nullptr) {
        series = std::make_unique<MethodSeries>(families_.rpcs, families_.rpc_duration,
                                                std::string(method.substr(1)));
      }
      return new Call(*series, open_);
    }

   private:
    Families& families_;
    std::atomic<int64_t>& open_;
    absl::Mutex mutex_;
    absl::flat_hash_map<std::string, std::unique_ptr<MethodSeries>> series_ ABSL_GUARDED_BY(mutex_);
  };
  return std::make_unique<Factory>(*families_, open_calls_);
}

std::shared_ptr<prometheus::Collectable> MakeStoreGauges(JobStore& store, JobQueue& queue,
                                                         WatchHub& watches) {
  return std::make_shared<StoreGauges>(store, queue, watches);
}

struct MetricsEndpoint::State {
  explicit State(const std::string& address) : exposer(address, /*num_threads=*/1) {}
  prometheus::Exposer exposer;
  // The exposer holds weak references.
  std::shared_ptr<prometheus::Collectable> registry;
  std::shared_ptr<prometheus::Collectable> gauges;
};

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
MetricsEndpoint::~MetricsEndpoint() = default;

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const std::string& address, const ServerMetrics& metrics,
    std::shared_ptr<prometheus::Collectable> gauges) {
  std::unique_ptr<State> state;
  try {
    state = std::make_unique<State>(address);
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("Cannot serve metrics on ", address, ": ",
                                               error.what(),
                                               "; choose another --metrics-listen, or off"));
  }
  state->registry = metrics.registry();
  state->gauges = std::move(gauges);
  state->exposer.RegisterCollectable(state->registry);
  state->exposer.RegisterCollectable(state->gauges);
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(state)));
}

int MetricsEndpoint::port() const {
  const std::vector<int> ports = state_->exposer.GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

}  // namespace qpruner::server
