#include "tests/faults/followed_job.h"

#include <utility>

#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"

namespace qpruner {
namespace {

constexpr absl::Duration kRetryWait = absl::Milliseconds(50);
// A stream of a server that is stopped, or behind a dead cable, must not keep its watcher for ever.
constexpr absl::Duration kWatchLimit = absl::Seconds(3);
constexpr absl::Duration kCallLimit = absl::Seconds(3);

void SetDeadline(grpc::ClientContext& context, absl::Duration limit) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + limit));
}

bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

bool IsFinalState(v1::CompressionJob::State state) {
  return state == v1::CompressionJob::SUCCEEDED || state == v1::CompressionJob::FAILED ||
         state == v1::CompressionJob::CANCELLED;
}

FollowedJob::FollowedJob(v1::JobService::Stub& jobs, v1::CreateJobRequest request)
    : jobs_(jobs), request_(std::move(request)), thread_([this] { Run(); }) {}

FollowedJob::~FollowedJob() {
  stopping_ = true;
  thread_.join();
}

std::string FollowedJob::name() const {
  absl::MutexLock lock(&mutex_);
  return name_;
}

std::vector<v1::JobEvent> FollowedJob::events() const {
  absl::MutexLock lock(&mutex_);
  return events_;
}

absl::Status FollowedJob::error() const {
  absl::MutexLock lock(&mutex_);
  return error_;
}

void FollowedJob::Fail(const absl::Status& error) {
  absl::MutexLock lock(&mutex_);
  error_ = error;
  ended_ = true;
}

bool FollowedJob::Create() {
  while (!stopping_) {
    grpc::ClientContext context;
    SetDeadline(context, kCallLimit);
    v1::CompressionJob job;
    const absl::Status status = FromGrpcStatus(jobs_.CreateJob(&context, request_, &job));
    if (status.ok()) {
      absl::MutexLock lock(&mutex_);
      name_ = job.name();
      return true;
    }
    if (!IsTransient(status)) {
      Fail(status);
      return false;
    }
    absl::SleepFor(kRetryWait);
  }
  return false;
}

void FollowedJob::Run() {
  if (!Create()) return;
  v1::WatchJobRequest request;
  request.set_name(name());
  while (!stopping_) {
    grpc::ClientContext context;
    SetDeadline(context, kWatchLimit);
    const auto stream = jobs_.WatchJob(&context, request);
    bool finished = false;
    for (v1::JobEvent event; stream->Read(&event);) {
      request.set_after_sequence(event.sequence());
      finished = event.has_state_changed() && IsFinalState(event.state_changed().state());
      absl::MutexLock lock(&mutex_);
      events_.push_back(std::move(event));
    }
    const absl::Status status = FromGrpcStatus(stream->Finish());
    if (finished) {
      ended_ = true;
      return;
    }
    if (status.ok()) {
      return Fail(absl::DataLossError("the job's stream ended before the job"));
    }
    if (!IsTransient(status)) return Fail(status);
    if (absl::IsUnavailable(status)) absl::SleepFor(kRetryWait);
  }
}

absl::StatusOr<std::vector<v1::JobEvent>> ReplayEvents(v1::JobService::StubInterface& jobs,
                                                       const std::string& name) {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(30));
  v1::WatchJobRequest request;
  request.set_name(name);
  const auto stream = jobs.WatchJob(&context, request);
  std::vector<v1::JobEvent> events;
  for (v1::JobEvent event; stream->Read(&event);) events.push_back(std::move(event));
  RETURN_IF_ERROR(FromGrpcStatus(stream->Finish()));
  return events;
}

}  // namespace qpruner
