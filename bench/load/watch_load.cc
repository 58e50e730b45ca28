#include "bench/load/watch_load.h"

#include <stdio.h>

#include <algorithm>
#include <memory>
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

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
}

bool IsFinal(v1::CompressionJob::State state) {
  return state == v1::CompressionJob::SUCCEEDED || state == v1::CompressionJob::FAILED ||
         state == v1::CompressionJob::CANCELLED;
}

absl::Time EventTime(const v1::JobEvent& event) {
  return absl::FromUnixSeconds(event.time().seconds()) + absl::Nanoseconds(event.time().nanos());
}

// One stream, from the job's first event to its end.
class Watcher final : public grpc::ClientReadReactor<v1::JobEvent> {
 public:
  Watcher(v1::JobService::Stub& stub, const std::string& job) {
    request_.set_name(job);
    stub.async()->WatchJob(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    const absl::Time now = absl::Now();
    {
      absl::MutexLock lock(&mutex_);
      // The event's time is taken before its commit: the sync of the disk is part of the delay.
      milliseconds_.push_back(absl::ToDoubleMilliseconds(now - EventTime(event_)));
      in_order_ &= event_.sequence() == ++count_;
      finished_ |= event_.has_state_changed() && IsFinal(event_.state_changed().state());
    }
    StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override {
    absl::MutexLock lock(&mutex_);
    status_ = FromGrpcStatus(status);
    done_ = true;
  }

  int64_t count() const {
    absl::MutexLock lock(&mutex_);
    return count_;
  }
  bool done() const {
    absl::MutexLock lock(&mutex_);
    return done_;
  }
  void Cancel() { context_.TryCancel(); }
  void AwaitEnd() const {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
  }
  // After the end. DATA_LOSS: what it got is not `event_count` events in order.
  absl::Status Check(int64_t event_count) const {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(status_);
    if (in_order_ && finished_ && count_ == event_count) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(
        "a watcher of ", request_.name(), " got ", count_, " of ", event_count, " events, ",
        in_order_ ? "in order" : "not in order", finished_ ? "" : ", and not the last"));
  }
  std::vector<double> milliseconds() const {
    absl::MutexLock lock(&mutex_);
    return milliseconds_;
  }

 private:
  grpc::ClientContext context_;
  v1::WatchJobRequest request_;
  v1::JobEvent event_;
  mutable absl::Mutex mutex_;
  std::vector<double> milliseconds_ ABSL_GUARDED_BY(mutex_);
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  bool in_order_ ABSL_GUARDED_BY(mutex_) = true;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

using Watchers = std::vector<std::unique_ptr<Watcher>>;

absl::StatusOr<std::string> Create(v1::JobService::Stub& stub, int trials) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_search()->set_max_trials(trials);
  v1::CompressionJob job;
  RETURN_IF_ERROR(FromGrpcStatus(stub.CreateJob(&context, request, &job)));
  return job.name();
}

absl::StatusOr<v1::CompressionJob> Get(v1::JobService::Stub& stub, const std::string& name) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::GetJobRequest request;
  request.set_name(name);
  v1::CompressionJob job;
  RETURN_IF_ERROR(FromGrpcStatus(stub.GetJob(&context, request, &job)));
  return job;
}

// Until each watcher has the events that are there when it begins.
absl::Status AwaitFirstEvents(const Watchers& watchers, int64_t events) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  for (const auto& watcher : watchers) {
    while (watcher->count() < events) {
      if (watcher->done() || absl::Now() > deadline) {
        return absl::UnavailableError("a watcher does not get the job's first events");
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return absl::OkStatus();
}

// The memory of the server on the way.
struct Memory {
  double before = 0;
  double watched = 0;
};

double MiB(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void Print(const char* what, const Watchers& watchers, int64_t skip, const CpuShares& shares,
           const Memory& memory, Service& service, absl::Duration duration) {
  std::vector<double> milliseconds;
  for (const auto& watcher : watchers) {
    const std::vector<double> some = watcher->milliseconds();
    // The first ones were there before the watcher.
    milliseconds.insert(milliseconds.end(),
                        some.begin() + std::min<int64_t>(skip, static_cast<int64_t>(some.size())),
                        some.end());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  const pid_t pid = service.server().pid();
  printf(
      "  %-22s %zu events received, %.0f /s, all in order, none lost or doubled; delay p50 %.1f "
      "ms, p99 %.1f ms, max %.1f ms\n",
      what, milliseconds.size(),
      static_cast<double>(milliseconds.size()) / absl::ToDoubleSeconds(duration),
      Quantile(milliseconds, 0.5), Quantile(milliseconds, 0.99), Quantile(milliseconds, 1));
  printf(
      "  %-22s server's memory: %.1f MiB before the watchers, %.1f with them, %.1f at the end, "
      "%.1f at most; %d threads, %d files\n",
      "", memory.before, memory.watched, MiB(ResidentBytes(pid)), MiB(PeakResidentBytes(pid)),
      ThreadCount(pid), OpenFileCount(pid));
  printf("  %-22s %s\n", "", shares.Describe().c_str());
  fflush(stdout);
}

// Begins the one task of a job that tells lines.
class Teller {
 public:
  explicit Teller(ServerProcess& server) : stub_(WorkerService::NewStub(server.NewChannel())) {}

  absl::Status Begin() {
    {
      grpc::ClientContext context;
      SetDeadline(context);
      internal::v1::RegisterWorkerRequest request;
      request.set_worker("teller");
      request.set_incarnation("one");
      internal::v1::RegisterWorkerResponse response;
      RETURN_IF_ERROR(FromGrpcStatus(stub_->RegisterWorker(&context, request, &response)));
    }
    grpc::ClientContext context;
    SetDeadline(context);
    internal::v1::AcquireTaskRequest request;
    request.set_worker("teller");
    request.set_incarnation("one");
    request.mutable_wait_time()->set_seconds(20);
    internal::v1::AcquireTaskResponse response;
    RETURN_IF_ERROR(FromGrpcStatus(stub_->AcquireTask(&context, request, &response)));
    lease_ = response.lease();
    return absl::OkStatus();
  }
  // A line and the progress: two events. False: the server wants the task ended.
  absl::StatusOr<bool> Tell(int number) {
    grpc::ClientContext context;
    SetDeadline(context);
    internal::v1::HeartbeatRequest request;
    *request.mutable_lease() = lease_;
    request.set_message("telling");
    request.add_logs()->set_text(absl::StrCat("line ", number));
    internal::v1::HeartbeatResponse response;
    RETURN_IF_ERROR(FromGrpcStatus(stub_->Heartbeat(&context, request, &response)));
    return response.desired_state() != internal::v1::HeartbeatResponse::ABORT;
  }
  absl::Status End() {
    grpc::ClientContext context;
    SetDeadline(context);
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = lease_;
    request.mutable_error()->set_code(static_cast<int>(absl::StatusCode::kCancelled));
    request.mutable_error()->set_message("as asked");
    google::protobuf::Empty response;
    return FromGrpcStatus(stub_->CompleteTask(&context, request, &response));
  }

 private:
  const std::unique_ptr<WorkerService::Stub> stub_;
  internal::v1::Lease lease_;
};

class NoListener final : public WorkerListener {
 public:
  void OnLeased(const internal::v1::AcquireTaskResponse&) override {}
  void OnEnded(const internal::v1::Lease&, const absl::Status&) override {}
};

// The watchers are gone when it returns, so that they can be destroyed.
absl::Status CancelAll(const Watchers& watchers, absl::Status status) {
  for (const auto& watcher : watchers) watcher->Cancel();
  for (const auto& watcher : watchers) watcher->AwaitEnd();
  return status;
}

absl::Status TellAll(Service& service, v1::JobService::Stub& stub, const std::string& job,
                     const WatchLoad& load) {
  Teller teller(service.server());
  RETURN_IF_ERROR(teller.Begin());
  const absl::Time start = absl::Now();
  for (int i = 0; i < load.events / 2; ++i) {
    absl::SleepFor(start + absl::Seconds(2 * i / load.events_per_second) - absl::Now());
    RETURN_IF_ERROR(teller.Tell(i).status());
  }
  grpc::ClientContext context;
  SetDeadline(context);
  v1::CancelJobRequest request;
  request.set_name(job);
  v1::CompressionJob cancelled;
  RETURN_IF_ERROR(FromGrpcStatus(stub.CancelJob(&context, request, &cancelled)));
  return teller.End();
}

}  // namespace

absl::Status WatchOneJob(Service& service, const WatchLoad& load) {
  const auto stubs = service.NewJobStubs(load.channels);
  ASSIGN_OR_RETURN(const std::string job, Create(*stubs[0], 8));
  const pid_t pid = service.server().pid();
  Memory memory{.before = MiB(ResidentBytes(pid))};
  Watchers watchers;
  for (int i = 0; i < load.watchers; ++i) {
    watchers.push_back(
        std::make_unique<Watcher>(*stubs[static_cast<size_t>(i) % stubs.size()], job));
  }
  constexpr int64_t kFirstEvents = 1;
  absl::Status status = AwaitFirstEvents(watchers, kFirstEvents);
  if (!status.ok()) return CancelAll(watchers, status);
  memory.watched = MiB(ResidentBytes(pid));
  const CpuShares shares = service.Measure();
  const absl::Time start = absl::Now();
  status = TellAll(service, *stubs[0], job, load);
  if (!status.ok()) return CancelAll(watchers, status);
  for (const auto& watcher : watchers) watcher->AwaitEnd();
  const absl::Duration duration = absl::Now() - start;
  ASSIGN_OR_RETURN(const v1::CompressionJob ended, Get(*stubs[0], job));
  for (const auto& watcher : watchers) {
    RETURN_IF_ERROR(watcher->Check(ended.last_event_sequence()));
  }
  Print(absl::StrCat(load.watchers, " on one job").c_str(), watchers, kFirstEvents, shares, memory,
        service, duration);
  return absl::OkStatus();
}

absl::Status WatchManyJobs(Service& service, const WatchLoad& load) {
  const auto stubs = service.NewJobStubs(load.channels);
  const pid_t pid = service.server().pid();
  Memory memory{.before = MiB(ResidentBytes(pid))};
  std::vector<std::string> jobs;
  Watchers watchers;
  for (int i = 0; i < load.watchers; ++i) {
    v1::JobService::Stub& stub = *stubs[static_cast<size_t>(i) % stubs.size()];
    absl::StatusOr<std::string> job = Create(stub, 4);
    if (!job.ok()) return CancelAll(watchers, job.status());
    watchers.push_back(std::make_unique<Watcher>(stub, *job));
    jobs.push_back(*std::move(job));
  }
  constexpr int64_t kFirstEvents = 1;
  absl::Status status = AwaitFirstEvents(watchers, kFirstEvents);
  if (!status.ok()) return CancelAll(watchers, status);
  memory.watched = MiB(ResidentBytes(pid));
  const CpuShares shares = service.Measure();
  const absl::Time start = absl::Now();
  const auto worker_stub = WorkerService::NewStub(service.server().NewChannel());
  NoListener listener;
  absl::Duration duration;
  {
    std::vector<std::unique_ptr<SimulatedWorker>> workers;
    for (int i = 0; i < load.workers; ++i) {
      workers.push_back(std::make_unique<SimulatedWorker>(
          absl::StrCat("w", i), absl::ZeroDuration(), *worker_stub, listener));
    }
    for (const auto& watcher : watchers) watcher->AwaitEnd();
    duration = absl::Now() - start;
    for (const auto& worker : workers) worker->Stop();
  }
  for (size_t i = 0; i < watchers.size(); ++i) {
    ASSIGN_OR_RETURN(const v1::CompressionJob ended, Get(*stubs[0], jobs[i]));
    RETURN_IF_ERROR(watchers[i]->Check(ended.last_event_sequence()));
    if (ended.state() != v1::CompressionJob::SUCCEEDED) {
      return absl::InternalError(absl::StrCat(ended.name(), ": ", ended.error().message()));
    }
  }
  Print(absl::StrCat(load.watchers, " on as many jobs").c_str(), watchers, kFirstEvents, shares,
        memory, service, duration);
  return absl::OkStatus();
}

}  // namespace qpruner::load
