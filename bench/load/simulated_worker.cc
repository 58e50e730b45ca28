#include "bench/load/simulated_worker.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "google/protobuf/util/time_util.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "tests/testing/scripted_job.h"

namespace qpruner::load {

using internal::v1::AcquireTaskRequest;
using internal::v1::AcquireTaskResponse;
using internal::v1::CompleteTaskRequest;
using internal::v1::HeartbeatRequest;
using internal::v1::HeartbeatResponse;
using internal::v1::RegisterWorkerRequest;
using internal::v1::RegisterWorkerResponse;
using internal::v1::UploadArtifactRequest;

namespace {

constexpr absl::Duration kCallLimit = absl::Seconds(30);
constexpr absl::Duration kPollWait = absl::Seconds(20);
// Before a call is made again that found no server.
constexpr absl::Duration kRetryWait = absl::Milliseconds(100);

// What a call needs until it has ended.
template <typename Request, typename Response>
struct Call {
  std::shared_ptr<grpc::ClientContext> context;
  Request request;
  Response response;
};

// Refusals of a busy server say when to come again.
bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         RetryDelay(status).has_value();
}

}  // namespace

SimulatedWorker::SimulatedWorker(std::string name, absl::Duration task_duration,
                                 internal::v1::WorkerService::Stub& stub, WorkerListener& listener)
    : name_(std::move(name)), task_duration_(task_duration), stub_(stub), listener_(listener) {
  Register();
}

SimulatedWorker::~SimulatedWorker() {
  Stop();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&idle_));
}

void SimulatedWorker::Stop() {
  std::shared_ptr<grpc::ClientContext> context;
  std::shared_ptr<grpc::Alarm> alarm;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    context = context_;
    alarm = alarm_;
  }
  if (context) context->TryCancel();
  if (alarm) alarm->Cancel();
}

std::shared_ptr<grpc::ClientContext> SimulatedWorker::NewContext(absl::Duration limit) {
  auto context = std::make_shared<grpc::ClientContext>();
  context->set_deadline(absl::ToChronoTime(absl::Now() + limit));
  absl::MutexLock lock(&mutex_);
  alarm_.reset();
  if (stopping_) {
    context_.reset();
    idle_ = true;
    return nullptr;
  }
  context_ = context;
  return context;
}

void SimulatedWorker::Later(absl::Duration wait, std::function<void()> next) {
  auto alarm = std::make_shared<grpc::Alarm>();
  absl::MutexLock lock(&mutex_);
  context_.reset();
  if (stopping_) {
    idle_ = true;
    return;
  }
  alarm_ = alarm;
  // The closure keeps the alarm until it has run. A cancelled one runs too: the next step sees that
  // it is stopped.
  alarm->Set(absl::ToChronoTime(absl::Now() + wait),
             [alarm, next = std::move(next)](bool) { next(); });
}

void SimulatedWorker::Register() {
  auto call = std::make_shared<Call<RegisterWorkerRequest, RegisterWorkerResponse>>();
  if (!(call->context = NewContext(kCallLimit))) return;
  call->request.set_worker(name_);
  call->request.set_incarnation("one");
  call->request.set_device("simulated");
  stub_.async()->RegisterWorker(
      call->context.get(), &call->request, &call->response, [this, call](grpc::Status status) {
        if (!status.ok()) return Later(kRetryWait, [this] { Register(); });
        heartbeat_interval_ =
            absl::Milliseconds(google::protobuf::util::TimeUtil::DurationToMilliseconds(
                call->response.heartbeat_interval()));
        Acquire();
      });
}

void SimulatedWorker::Acquire() {
  auto call = std::make_shared<Call<AcquireTaskRequest, AcquireTaskResponse>>();
  if (!(call->context = NewContext(kPollWait + kCallLimit))) return;
  call->request.set_worker(name_);
  call->request.set_incarnation("one");
  call->request.mutable_wait_time()->set_seconds(absl::ToInt64Seconds(kPollWait));
  stub_.async()->AcquireTask(call->context.get(), &call->request, &call->response,
                             [this, call](grpc::Status status) {
                               if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION)
                                 return Register();
                               if (!status.ok()) return Later(kRetryWait, [this] { Acquire(); });
                               if (!call->response.has_lease()) return Acquire();
                               held_ = std::move(call->response);
                               task_end_ = absl::Now() + task_duration_;
                               listener_.OnLeased(held_);
                               Work();
                             });
}

void SimulatedWorker::Work() {
  const absl::Duration left = task_end_ - absl::Now();
  if (left <= absl::ZeroDuration()) {
    UploadOutputs(0);
  } else if (left < heartbeat_interval_) {
    Later(left, [this] { UploadOutputs(0); });
  } else {
    Later(heartbeat_interval_, [this] { Heartbeat(); });
  }
}

void SimulatedWorker::Heartbeat() {
  auto call = std::make_shared<Call<HeartbeatRequest, HeartbeatResponse>>();
  if (!(call->context = NewContext(kCallLimit))) return;
  *call->request.mutable_lease() = held_.lease();
  call->request.set_fraction(
      1 - std::clamp(absl::FDivDuration(task_end_ - absl::Now(), task_duration_), 0.0, 1.0));
  call->request.set_message("waiting");
  stub_.async()->Heartbeat(call->context.get(), &call->request, &call->response,
                           [this, call](grpc::Status grpc_status) {
                             const absl::Status status = FromGrpcStatus(grpc_status);
                             if (!status.ok() && !IsTransient(status)) return EndLease(status);
                             if (call->response.desired_state() == HeartbeatResponse::ABORT) {
                               return EndLease(absl::CancelledError("As the server wants"));
                             }
                             Work();
                           });
}

// One message holds the whole file.
class SimulatedWorker::Upload final : public grpc::ClientWriteReactor<UploadArtifactRequest> {
 public:
  Upload(SimulatedWorker& worker, std::shared_ptr<grpc::ClientContext> context,
         const std::string& path, std::function<void(const absl::Status&)> done)
      : context_(std::move(context)), done_(std::move(done)) {
    *message_.mutable_lease() = worker.held_.lease();
    *message_.mutable_ref() = ArtifactOf(path, ContentOf(path));
    message_.set_data(ContentOf(path));
    worker.stub_.async()->UploadArtifact(context_.get(), &response_, this);
    StartWriteLast(&message_, grpc::WriteOptions());
    StartCall();
  }
  void OnDone(const grpc::Status& status) override {
    done_(FromGrpcStatus(status));
    delete this;
  }

 private:
  const std::shared_ptr<grpc::ClientContext> context_;
  const std::function<void(const absl::Status&)> done_;
  UploadArtifactRequest message_;
  google::protobuf::Empty response_;
};

void SimulatedWorker::UploadOutputs(size_t index) {
  const std::vector<std::string> paths = OutputsOf(held_.task());
  if (index == paths.size()) return Complete();
  std::shared_ptr<grpc::ClientContext> context = NewContext(kCallLimit);
  if (!context) return;
  // Deletes itself.
  new Upload(*this, std::move(context), paths[index], [this, index](const absl::Status& status) {
    if (status.ok()) return UploadOutputs(index + 1);
    if (IsTransient(status)) {
      return Later(RetryDelay(status).value_or(kRetryWait),
                   [this, index] { UploadOutputs(index); });
    }
    EndLease(status);
  });
}

void SimulatedWorker::Complete() {
  auto call = std::make_shared<Call<CompleteTaskRequest, google::protobuf::Empty>>();
  if (!(call->context = NewContext(kCallLimit))) return;
  *call->request.mutable_lease() = held_.lease();
  *call->request.mutable_result() = ScriptedResult(held_.task());
  stub_.async()->CompleteTask(call->context.get(), &call->request, &call->response,
                              [this, call](grpc::Status status) {
                                if (IsTransient(FromGrpcStatus(status)))
                                  return Later(kRetryWait, [this] { Complete(); });
                                EndLease(FromGrpcStatus(status));
                              });
}

void SimulatedWorker::EndLease(const absl::Status& status) {
  listener_.OnEnded(held_.lease(), status);
  Acquire();
}

}  // namespace qpruner::load
