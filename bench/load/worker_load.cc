#include "bench/load/worker_load.h"

#include <stdio.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "bench/load/closed_loop.h"
#include "bench/load/simulated_worker.h"
#include "proto/grpc_status.h"
#include "tests/testing/process_usage.h"
#include "tests/testing/scripted_job.h"

namespace qpruner::load {
namespace {

using internal::v1::WorkerService;

absl::Time ToTime(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) + absl::Nanoseconds(timestamp.nanos());
}

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
}

// What the workers saw.
class Ledger final : public WorkerListener {
 public:
  void OnLeased(const internal::v1::AcquireTaskResponse& held) override {
    const absl::Time now = absl::Now();
    absl::MutexLock lock(&mutex_);
    most_held_ = std::max(most_held_, (held_.insert(held.lease().token()), held_.size()));
    if (held.task().has_prepare()) prepare_came_.emplace(held.lease().job(), now);
  }
  void OnEnded(const internal::v1::Lease& lease, const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    held_.erase(lease.token());
    if (status.ok()) {
      ++completed_count_;
    } else if (++lost_count_ == 1) {
      first_loss_ = absl::StrCat(lease.job(), "/", lease.task(), ": ", status.ToString());
    }
  }

  size_t held_count() const {
    absl::MutexLock lock(&mutex_);
    return held_.size();
  }
  size_t most_held() const {
    absl::MutexLock lock(&mutex_);
    return most_held_;
  }
  int64_t completed_count() const {
    absl::MutexLock lock(&mutex_);
    return completed_count_;
  }
  int64_t lost_count() const {
    absl::MutexLock lock(&mutex_);
    return lost_count_;
  }
  std::string first_loss() const {
    absl::MutexLock lock(&mutex_);
    return first_loss_;
  }
  std::map<std::string, absl::Time> prepare_came() const {
    absl::MutexLock lock(&mutex_);
    return prepare_came_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::set<std::string> held_ ABSL_GUARDED_BY(mutex_);
  size_t most_held_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t completed_count_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t lost_count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string first_loss_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, absl::Time> prepare_came_ ABSL_GUARDED_BY(mutex_);
};

// The server may be away: the request id makes the repetition harmless.
absl::StatusOr<v1::CompressionJob> Create(v1::JobService::Stub& stub, int number) {
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_search()->set_max_trials(4);
  request.set_request_id(absl::StrCat("workers-", number));
  absl::Status status = absl::UnavailableError("not called");
  for (int tries = 0; tries < 600 && absl::IsUnavailable(status); ++tries) {
    if (tries > 0) absl::SleepFor(absl::Milliseconds(50));
    grpc::ClientContext context;
    SetDeadline(context);
    v1::CompressionJob job;
    status = FromGrpcStatus(stub.CreateJob(&context, request, &job));
    if (status.ok()) return job;
  }
  return status;
}

absl::StatusOr<std::vector<v1::JobEvent>> EventsToTheEnd(v1::JobService::Stub& stub,
                                                         const std::string& name) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::WatchJobRequest request;
  request.set_name(name);
  const auto stream = stub.WatchJob(&context, request);
  std::vector<v1::JobEvent> events;
  for (v1::JobEvent event; stream->Read(&event);) events.push_back(event);
  RETURN_IF_ERROR(FromGrpcStatus(stream->Finish()));
  return events;
}

// What a job's events tell of its leases.
struct LeaseStory {
  std::vector<double> trial_waits;  // Milliseconds from queued to leased.
  int64_t repeated = 0;             // Leases beyond the first of a trial.
};

LeaseStory Read(const std::vector<v1::JobEvent>& events) {
  LeaseStory story;
  std::map<int, absl::Time> queued;
  for (const v1::JobEvent& event : events) {
    if (!event.has_trial_updated()) continue;
    const v1::Trial& trial = event.trial_updated();
    if (trial.state() == v1::Trial::QUEUED) queued[trial.index()] = ToTime(event.time());
    if (trial.state() != v1::Trial::RUNNING) continue;
    story.trial_waits.push_back(
        absl::ToDoubleMilliseconds(ToTime(event.time()) - queued[trial.index()]));
    story.repeated += trial.attempt_count() > 1;
  }
  return story;
}

void PrintWaits(const char* what, std::vector<double> milliseconds) {
  std::sort(milliseconds.begin(), milliseconds.end());
  printf("  %-34s %6zu tasks   p50 %6.1f ms   p99 %6.1f ms   max %6.1f ms\n", what,
         milliseconds.size(), Quantile(milliseconds, 0.5), Quantile(milliseconds, 0.99),
         Quantile(milliseconds, 1));
}

}  // namespace

absl::Status RunWorkers(Service& service, const WorkerLoad& load, bool restart) {
  ServerProcess& server = service.server();
  Ledger ledger;
  std::vector<std::unique_ptr<WorkerService::Stub>> worker_stubs;
  for (int i = 0; i < load.channels; ++i) {
    worker_stubs.push_back(WorkerService::NewStub(server.NewChannel()));
  }
  const auto stubs = service.NewJobStubs(1);
  std::vector<std::unique_ptr<SimulatedWorker>> workers;
  for (int i = 0; i < load.workers; ++i) {
    workers.push_back(std::make_unique<SimulatedWorker>(
        absl::StrCat("w", i), load.task_duration,
        *worker_stubs[static_cast<size_t>(i) % worker_stubs.size()], ledger));
  }
  absl::SleepFor(absl::Seconds(1));

  auto shares = std::make_unique<CpuShares>(service.Measure());
  std::vector<v1::CompressionJob> jobs;
  const int count = static_cast<int>(load.jobs_per_second * absl::ToDoubleSeconds(load.duration));
  const absl::Time start = absl::Now();
  size_t held_at_kill = 0;
  absl::Duration away;
  for (int i = 0; i < count; ++i) {
    if (restart && i == count / 2) {
      held_at_kill = ledger.held_count();
      const absl::Time killed = absl::Now();
      server.Kill();
      absl::SleepFor(absl::Seconds(1));
      RETURN_IF_ERROR(server.Start());
      away = absl::Now() - killed;
      shares = std::make_unique<CpuShares>(service.Measure());
    }
    absl::SleepFor(start + absl::Seconds(i / load.jobs_per_second) - absl::Now());
    ASSIGN_OR_RETURN(v1::CompressionJob job, Create(*stubs[0], i));
    jobs.push_back(std::move(job));
  }
  const std::string described = shares->Describe();
  const int64_t resident = ResidentBytes(server.pid());

  std::vector<double> trial_waits, prepare_waits;
  int64_t repeated = 0;
  for (const v1::CompressionJob& job : jobs) {
    ASSIGN_OR_RETURN(const std::vector<v1::JobEvent> events, EventsToTheEnd(*stubs[0], job.name()));
    if (events.empty() || events.back().state_changed().state() != v1::CompressionJob::SUCCEEDED) {
      return absl::DataLossError(absl::StrCat(job.name(), " did not succeed"));
    }
    const LeaseStory story = Read(events);
    trial_waits.insert(trial_waits.end(), story.trial_waits.begin(), story.trial_waits.end());
    repeated += story.repeated;
  }
  const std::map<std::string, absl::Time> came = ledger.prepare_came();
  for (const v1::CompressionJob& job : jobs) {
    prepare_waits.push_back(
        absl::ToDoubleMilliseconds(came.at(job.name()) - ToTime(job.create_time())));
  }
  for (const auto& worker : workers) worker->Stop();
  workers.clear();

  printf("  %d workers, %zu busy at most, %d jobs at %.0f /s, tasks of %.0f ms%s\n", load.workers,
         ledger.most_held(), count, load.jobs_per_second,
         absl::ToDoubleMilliseconds(load.task_duration), restart ? ", server killed half way" : "");
  PrintWaits("created to arrived at a worker", std::move(prepare_waits));
  PrintWaits("trial queued to leased", std::move(trial_waits));
  if (restart) {
    printf("  %zu leases were held when the server was killed; it was away for %.1f s\n",
           held_at_kill, absl::ToDoubleSeconds(away));
  }
  printf("  %lld tasks completed, %lld leases lost, %lld tasks leased again; %zu jobs succeeded\n",
         static_cast<long long>(ledger.completed_count()),
         static_cast<long long>(ledger.lost_count()), static_cast<long long>(repeated),
         jobs.size());
  printf("  server's memory %.1f MiB; %s\n", static_cast<double>(resident) / (1 << 20),
         described.c_str());
  fflush(stdout);
  if (ledger.lost_count() > 0 || repeated > 0) {
    return absl::DataLossError(absl::StrCat("leases were lost: ", ledger.first_loss()));
  }
  return absl::OkStatus();
}

}  // namespace qpruner::load
