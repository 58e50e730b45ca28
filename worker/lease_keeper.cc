#include "worker/lease_keeper.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

namespace qpruner::worker {

using internal::v1::EngineReply;
using internal::v1::HeartbeatRequest;
using internal::v1::HeartbeatResponse;

namespace {

// HeartbeatRequest.logs takes no more.
constexpr size_t kMaxLogLines = 100;

}  // namespace

LeaseKeeper::LeaseKeeper(internal::v1::WorkerService::StubInterface& server, Clock& clock,
                         internal::v1::Lease lease, Options options, std::function<void()> on_lost)
    : server_(server),
      clock_(clock),
      lease_(std::move(lease)),
      options_(options),
      on_lost_(std::move(on_lost)),
      thread_([this](std::stop_token stop) { KeepAlive(std::move(stop)); }) {}

LeaseKeeper::~LeaseKeeper() {
  thread_.request_stop();
  thread_.join();
}

void LeaseKeeper::Report(const EngineReply::TaskProgress& progress) {
  std::lock_guard lock(mutex_);
  fraction_ = progress.fraction();
  message_ = progress.message();
  logs_.insert(logs_.end(), progress.logs().begin(), progress.logs().end());
  if (logs_.size() > kMaxLogLines) {
    logs_.erase(logs_.begin(), logs_.end() - static_cast<ptrdiff_t>(kMaxLogLines));
  }
}

std::vector<v1::JobEvent::LogLine> LeaseKeeper::TakeLogs() {
  std::lock_guard lock(mutex_);
  std::vector<v1::JobEvent::LogLine> untold = std::exchange(sent_logs_, {});
  untold.insert(untold.end(), logs_.begin(), logs_.end());
  logs_.clear();
  return untold;
}

LeaseKeeper::Loss LeaseKeeper::loss() const {
  std::lock_guard lock(mutex_);
  return loss_;
}

void LeaseKeeper::Lose(Loss loss) {
  {
    std::lock_guard lock(mutex_);
    loss_ = loss;
  }
  on_lost_();
}

void LeaseKeeper::KeepAlive(std::stop_token stop) {
  absl::Duration expiry = clock_.Monotonic() + options_.lease_duration;
  while (!stop.stop_requested()) {
    const absl::Duration sent = clock_.Monotonic();
    if (sent >= expiry) {
      spdlog::warn("lease of {} {} expired without a heartbeat", lease_.job(), lease_.task());
      return Lose(Loss::kExpired);
    }
    HeartbeatRequest request;
    *request.mutable_lease() = lease_;
    {
      std::lock_guard lock(mutex_);
      request.set_fraction(fraction_);
      request.set_message(message_);
      sent_logs_ = std::exchange(logs_, {});
      request.mutable_logs()->Add(sent_logs_.begin(), sent_logs_.end());
    }
    HeartbeatResponse response;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    // A third of the lease: a call that hangs leaves time for two more.
    context.set_deadline(
        absl::ToChronoTime(absl::Now() + std::min(expiry - sent, options_.lease_duration / 3)));
    grpc::Status status;
    {
      const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
      status = server_.Heartbeat(&context, request, &response);
    }
    if (stop.stop_requested()) return;
    if (status.ok()) {
      {
        std::lock_guard lock(mutex_);
        sent_logs_.clear();
      }
      expiry = sent + options_.lease_duration;
      if (response.desired_state() == HeartbeatResponse::ABORT) return Lose(Loss::kAbortRequested);
      if (response.desired_state() == HeartbeatResponse::RETURN) {
        return Lose(Loss::kReturnRequested);
      }
    } else if (status.error_code() == grpc::StatusCode::ABORTED ||
               status.error_code() == grpc::StatusCode::NOT_FOUND) {
      return Lose(Loss::kSuperseded);
    } else {
      spdlog::warn("heartbeat for {} {} failed: {}", lease_.job(), lease_.task(),
                   status.error_message());
      std::lock_guard lock(mutex_);
      logs_.insert(logs_.begin(), sent_logs_.begin(), sent_logs_.end());
      if (logs_.size() > kMaxLogLines) logs_.resize(kMaxLogLines);
      sent_logs_.clear();
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, stop, absl::ToChronoMilliseconds(options_.heartbeat_interval),
                   [] { return false; });
  }
}

}  // namespace qpruner::worker
