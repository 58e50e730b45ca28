#include "bench/load/calls_load.h"

#include <stdio.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "bench/load/closed_loop.h"
#include "proto/grpc_status.h"
#include "tests/testing/scripted_job.h"

namespace qpruner::load {
namespace {

using Stubs = std::vector<std::unique_ptr<v1::JobService::Stub>>;

template <typename Request, typename Response>
struct Call {
  grpc::ClientContext context;
  Request request;
  Response response;
};

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
}

// Jobs that were created, by caller.
using Names = std::vector<std::vector<std::string>>;

// Each creation has a request id of its own, as the client library's have.
ClosedLoop::StartCall Creating(const Stubs& stubs, const std::string& run, Names& names) {
  auto count = std::make_shared<std::atomic<int64_t>>(0);
  return [&stubs, &names, run, count](int caller, std::function<void(const grpc::Status&)> done) {
    auto call = std::make_shared<Call<v1::CreateJobRequest, v1::CompressionJob>>();
    SetDeadline(call->context);
    call->request = ScriptedRequest();
    call->request.set_request_id(absl::StrCat(run, "-", (*count)++));
    stubs[static_cast<size_t>(caller) % stubs.size()]->async()->CreateJob(
        &call->context, &call->request, &call->response,
        [call, caller, &names, done = std::move(done)](const grpc::Status& status) {
          if (status.ok()) names[static_cast<size_t>(caller)].push_back(call->response.name());
          done(status);
        });
  };
}

void Print(const char* what, int callers, const CallStats& stats, const CpuShares& shares) {
  const double server = shares.ServerSeconds();
  printf(
      "  %-22s %3d callers %8.0f /s   p50 %7.2f ms   p99 %7.2f ms   max %7.2f ms   failed %lld\n",
      what, callers, stats.rate(), Quantile(stats.milliseconds, 0.5),
      Quantile(stats.milliseconds, 0.99), Quantile(stats.milliseconds, 1),
      static_cast<long long>(stats.failure_count));
  printf("  %-22s %s; %.0f for each CPU second of the server\n", "", shares.Describe().c_str(),
         server > 0 ? static_cast<double>(stats.milliseconds.size()) / server : 0);
  if (stats.failure_count > 0) printf("  first failure: %s\n", stats.first_failure.c_str());
  fflush(stdout);
}

absl::StatusOr<v1::ListJobsResponse> ListPage(v1::JobService::Stub& stub, int size,
                                              const std::string& token) {
  Call<v1::ListJobsRequest, v1::ListJobsResponse> call;
  SetDeadline(call.context);
  call.request.set_page_size(size);
  call.request.set_page_token(token);
  RETURN_IF_ERROR(FromGrpcStatus(stub.ListJobs(&call.context, call.request, &call.response)));
  return std::move(call.response);
}

// Each caller walks from the newest job to the oldest, and begins again.
ClosedLoop::StartCall Listing(const Stubs& stubs, std::vector<std::string>& tokens) {
  return [&](int caller, std::function<void(const grpc::Status&)> done) {
    auto call = std::make_shared<Call<v1::ListJobsRequest, v1::ListJobsResponse>>();
    SetDeadline(call->context);
    call->request.set_page_size(100);
    std::string& token = tokens[static_cast<size_t>(caller)];
    call->request.set_page_token(token);
    stubs[static_cast<size_t>(caller) % stubs.size()]->async()->ListJobs(
        &call->context, &call->request, &call->response,
        [call, &token, done = std::move(done)](const grpc::Status& status) {
          token = call->response.next_page_token();
          done(status);
        });
  };
}

}  // namespace

absl::Status MeasureCalls(Service& service, const CallsLoad& load) {
  const Stubs stubs = service.NewJobStubs(load.channels);
  Names names(static_cast<size_t>(load.callers));
  // Connections, caches, the first pages of the store.
  RunClosedLoop(load.callers, absl::Milliseconds(500), Creating(stubs, "warm", names));
  {
    const CpuShares shares = service.Measure();
    const CallStats stats =
        RunClosedLoop(load.callers, load.duration, Creating(stubs, "run", names));
    Print("CreateJob", load.callers, stats, shares);
    if (stats.milliseconds.empty()) return absl::UnavailableError(stats.first_failure);
  }
  std::vector<std::string> known;
  for (const auto& some : names) known.insert(known.end(), some.begin(), some.end());
  {
    std::atomic<size_t> next = 0;
    const CpuShares shares = service.Measure();
    const CallStats stats = RunClosedLoop(
        load.callers, load.duration,
        [&](int caller, std::function<void(const grpc::Status&)> done) {
          auto call = std::make_shared<Call<v1::GetJobRequest, v1::CompressionJob>>();
          SetDeadline(call->context);
          // In no order of the store's.
          call->request.set_name(known[next++ * 7919 % known.size()]);
          stubs[static_cast<size_t>(caller) % stubs.size()]->async()->GetJob(
              &call->context, &call->request, &call->response,
              [call, done = std::move(done)](const grpc::Status& status) { done(status); });
        });
    Print("GetJob", load.callers, stats, shares);
  }
  // Up to the length that the list shall have.
  std::atomic<int64_t> missing = load.listed_jobs - static_cast<int64_t>(known.size());
  if (missing > 0) {
    const auto create = Creating(stubs, "fill", names);
    ClosedLoop fill(load.callers, [&](int caller, std::function<void(const grpc::Status&)> done) {
      create(caller, [&missing, done = std::move(done)](const grpc::Status& status) {
        if (status.ok()) --missing;
        done(status);
      });
    });
    while (missing > 0) absl::SleepFor(absl::Milliseconds(20));
  }
  for (const int callers : {1, 4}) {
    std::vector<std::string> tokens(static_cast<size_t>(callers));
    const CpuShares shares = service.Measure();
    const CallStats stats = RunClosedLoop(callers, load.duration, Listing(stubs, tokens));
    Print(absl::StrCat("ListJobs, 100 of ", load.listed_jobs / 1000, "k").c_str(), callers, stats,
          shares);
  }
  return absl::OkStatus();
}

absl::Status KillWhileCreating(Service& service, const CallsLoad& load) {
  const Stubs stubs = service.NewJobStubs(load.channels);
  Names names(static_cast<size_t>(load.callers));
  {
    ClosedLoop loop(load.callers, Creating(stubs, "kill", names));
    absl::SleepFor(load.duration / 2);
    service.server().Kill();
    loop.Stop();
  }
  RETURN_IF_ERROR(service.server().Start());
  std::set<std::string> answered, stored;
  for (const auto& some : names) answered.insert(some.begin(), some.end());
  const Stubs after = service.NewJobStubs(1);
  int64_t listed_count = 0;
  std::string token;
  do {
    ASSIGN_OR_RETURN(const v1::ListJobsResponse page, ListPage(*after[0], 500, token));
    for (const v1::CompressionJob& job : page.jobs()) stored.insert(job.name());
    listed_count += page.jobs_size();
    token = page.next_page_token();
  } while (!token.empty());
  int64_t lost = 0;
  for (const std::string& name : answered) lost += stored.count(name) == 0;
  printf(
      "  killed while %d callers created: %zu creations answered, %lld of them lost, %zu jobs "
      "stored, %lld listed twice\n",
      load.callers, answered.size(), static_cast<long long>(lost), stored.size(),
      static_cast<long long>(listed_count) - static_cast<long long>(stored.size()));
  fflush(stdout);
  if (answered.empty()) return absl::UnavailableError("no creation was answered");
  if (lost > 0 || listed_count != static_cast<int64_t>(stored.size())) {
    return absl::DataLossError("jobs were lost or doubled");
  }
  return absl::OkStatus();
}

}  // namespace qpruner::load
