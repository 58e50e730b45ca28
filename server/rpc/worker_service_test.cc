#include "server/rpc/worker_service.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "base/durable_file.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/auth/access_control.h"
#include "server/store/sqlite_job_store.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

// As a store under load: what is written arrives, what is asked is not answered.
class UnreadableStore final : public JobStore {
 public:
  explicit UnreadableStore(JobStore& store) : store_(store) {}

  absl::Status Transact(absl::FunctionRef<absl::Status(StoreTransaction&)> body) override {
    return store_.Transact(body);
  }
  absl::Status Read(absl::FunctionRef<absl::Status(StoreReader&)> body) override {
    return unreadable ? absl::UnavailableError("every connection is in use") : store_.Read(body);
  }
  absl::StatusOr<std::string> Identity() override { return store_.Identity(); }

  std::atomic<bool> unreadable = false;

 private:
  JobStore& store_;
};

class WorkerServiceTest : public testing::Test {
 protected:
  using Upload = grpc::ClientWriter<internal::v1::UploadArtifactRequest>;

  WorkerServiceTest() {
    holder_ = TokenOf("w1");
    other_ = TokenOf("w2");
    access_ = AccessControl::FromFile(Tokens(), clock_).value();
    service_ =
        std::make_unique<WorkerServiceImpl>(*queue_, *artifacts_, *access_, peers_, interrupted_);
    server_ = grpc::ServerBuilder()
                  .AddListeningPort("unix:" + folder_.path() + "/socket",
                                    grpc::InsecureServerCredentials())
                  .RegisterService(service_.get())
                  .BuildAndStart();
    stub_ = internal::v1::WorkerService::NewStub(grpc::CreateChannel(
        "unix:" + folder_.path() + "/socket", grpc::InsecureChannelCredentials()));
    EXPECT_TRUE(queue_->CreateJob(*ValidateCreateJob(ScriptedRequest(), {})).ok());
    internal::v1::RegisterWorkerRequest worker;
    worker.set_worker("w1");
    worker.set_incarnation("a");
    EXPECT_TRUE(queue_->RegisterWorker(worker).ok());
    Acquire();
  }
  ~WorkerServiceTest() override { server_->Shutdown(); }

  void Acquire() {
    internal::v1::AcquireTaskRequest poll;
    poll.set_worker("w1");
    poll.set_incarnation("a");
    std::optional<internal::v1::AcquireTaskResponse> held;
    queue_->AcquireTask(poll, [&](auto response) { held = *response; });
    if (!held) queue_->Tick();
    ASSERT_TRUE(held && held->has_lease());
    lease_ = held->lease();
  }
  std::string Tokens() const { return folder_.path() + "/tokens.json"; }
  std::string TokenOf(const std::string& worker) {
    return AddNewToken({.file = Tokens(), .id = worker, .role = "worker", .workers = {worker}},
                       ids_)
        .value();
  }
  std::unique_ptr<grpc::ClientContext> As(const std::string& token) {
    auto context = std::make_unique<grpc::ClientContext>();
    context->AddMetadata("authorization", "Bearer " + token);
    return context;
  }
  absl::Status Complete(const std::string& token) {
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = lease_;
    *request.mutable_error() = ToRpcStatus(absl::InternalError("not the holder's"));
    const auto context = As(token);
    google::protobuf::Empty response;
    return FromGrpcStatus(stub_->CompleteTask(context.get(), request, &response));
  }
  // The first message of an upload of `content`, with all of it.
  internal::v1::UploadArtifactRequest UploadOf(const std::string& content) {
    internal::v1::UploadArtifactRequest request;
    *request.mutable_lease() = lease_;
    *request.mutable_ref() = ArtifactOf("model/x", content);
    request.set_data(content);
    return request;
  }
  // A call that has an end.
  struct Call {
    std::unique_ptr<grpc::ClientContext> context;
    google::protobuf::Empty response;
    std::unique_ptr<Upload> stream;
  };
  std::unique_ptr<Call> StartUpload() {
    auto call = std::make_unique<Call>();
    call->context = As(holder_);
    call->stream = stub_->UploadArtifact(call->context.get(), &call->response);
    return call;
  }
  // An upload of `content` of which only `sent` was said.
  std::unique_ptr<Call> StartUpload(const std::string& content, const std::string& sent) {
    auto call = StartUpload();
    internal::v1::UploadArtifactRequest first = UploadOf(content);
    first.set_data(sent);
    EXPECT_TRUE(call->stream->Write(first));
    // The next message is waited for.
    while (service_->transfer_count() != 1) std::this_thread::yield();
    AwaitWaiting(1);
    return call;
  }
  absl::Status UploadRest(const std::string& content, int64_t offset) {
    const auto call = StartUpload();
    internal::v1::UploadArtifactRequest rest = UploadOf(content);
    rest.set_offset(offset);
    rest.set_data(content.substr(static_cast<size_t>(offset)));
    call->stream->Write(rest);
    call->stream->WritesDone();
    return FromGrpcStatus(call->stream->Finish());
  }
  absl::StatusOr<int64_t> ReceivedBytes(const std::string& content) {
    internal::v1::PrepareUploadRequest request;
    *request.mutable_lease() = lease_;
    *request.mutable_ref() = ArtifactOf("model/x", content);
    internal::v1::PrepareUploadResponse response;
    const auto context = As(holder_);
    const absl::Status status =
        FromGrpcStatus(stub_->PrepareUpload(context.get(), request, &response));
    if (!status.ok()) return status;
    return response.received_bytes();
  }
  void AwaitWaiting(size_t count) {
    while (peers_.waiting() != count) std::this_thread::yield();
  }

  TempFolder folder_;
  SimulatedClock clock_;
  CountingIds ids_;
  WatchHub watches_;
  QueueObserver observer_;
  const std::unique_ptr<JobStore> sqlite_ =
      OpenSqliteJobStore({.folder = folder_.path() + "/store"}).value();
  UnreadableStore store_{*sqlite_};
  const std::unique_ptr<ArtifactStore> artifacts_ =
      OpenLocalArtifactStore({.folder = folder_.path() + "/artifacts", .clock = clock_}).value();
  const std::unique_ptr<TrialProposer> proposer_ = MakeSearchProposer();
  const std::unique_ptr<JobQueue> queue_ =
      JobQueue::Create({}, store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
          .value();
  PeerWatchdog peers_{clock_, absl::Seconds(60), absl::InfiniteDuration()};
  InterruptedUploads interrupted_{clock_, {.look_interval = absl::InfiniteDuration()}};
  std::string holder_, other_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<WorkerServiceImpl> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::WorkerService::Stub> stub_;
  internal::v1::Lease lease_;
};

TEST_F(WorkerServiceTest, NobodyCompletesATaskWhoseHolderCannotBeLookedUp) {
  EXPECT_TRUE(absl::IsPermissionDenied(Complete(other_)));
  store_.unreadable = true;
  EXPECT_TRUE(absl::IsUnavailable(Complete(other_)));
  EXPECT_TRUE(absl::IsUnavailable(Complete(holder_)));
  store_.unreadable = false;
  EXPECT_TRUE(queue_->FindLeasedTask(lease_).ok()) << "somebody ended it";
  EXPECT_TRUE(Complete(holder_).ok());
  EXPECT_TRUE(Complete(holder_).ok()) << "a reply that was lost";
}

TEST_F(WorkerServiceTest, AnUploadThatSendsNothingIsEnded) {
  const auto silent = StartUpload(), begun = StartUpload();
  internal::v1::UploadArtifactRequest first = UploadOf("content");
  first.set_data("cont");
  ASSERT_TRUE(begun->stream->Write(first));
  // Both streams wait: the one for its first message, the other for its second.
  while (service_->transfer_count() != 1) std::this_thread::yield();
  AwaitWaiting(2);
  clock_.Advance(absl::Seconds(59));
  peers_.Look();
  EXPECT_EQ(peers_.waiting(), 2u);
  clock_.Advance(absl::Seconds(2));
  peers_.Look();
  for (const auto& call : {silent.get(), begun.get()}) {
    const absl::Status ended = FromGrpcStatus(call->stream->Finish());
    EXPECT_TRUE(absl::IsUnavailable(ended)) << ended;
    EXPECT_EQ(ended.message(), "Nothing was sent for 1m");
  }
  EXPECT_FALSE(*artifacts_->Contains(first.ref().sha256()));
  // It may try again.
  const auto again = StartUpload();
  ASSERT_TRUE(again->stream->Write(UploadOf("content")));
  again->stream->WritesDone();
  EXPECT_TRUE(again->stream->Finish().ok());
  EXPECT_TRUE(*artifacts_->Contains(first.ref().sha256()));
}

TEST_F(WorkerServiceTest, AWorkerHasEightTransfersAtATime) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(StartUpload());
    internal::v1::UploadArtifactRequest first = UploadOf("content");
    first.clear_data();
    ASSERT_TRUE(calls.back()->stream->Write(first));
    // Its place is taken once the next message is waited for.
    while (service_->transfer_count() != i + 1) std::this_thread::yield();
  }
  const auto ninth = StartUpload();
  ninth->stream->Write(UploadOf("content"));
  const absl::Status refused = FromGrpcStatus(ninth->stream->Finish());
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(ErrorReason(refused), "TOO_MANY_TRANSFERS");
  EXPECT_TRUE(RetryDelay(refused));
  calls.front()->context->TryCancel();
  calls.front()->stream->Finish();
  while (service_->transfer_count() != 7) std::this_thread::yield();
  const auto next = StartUpload();
  ASSERT_TRUE(next->stream->Write(UploadOf("content")));
  next->stream->WritesDone();
  EXPECT_TRUE(next->stream->Finish().ok());
  for (const auto& call : calls) call->context->TryCancel();
}

TEST_F(WorkerServiceTest, ALeaseThatEndsDuringAnUploadStoresNothing) {
  const auto call = StartUpload();
  const internal::v1::UploadArtifactRequest all = UploadOf("content");
  ASSERT_TRUE(call->stream->Write(all));
  while (service_->transfer_count() != 1) std::this_thread::yield();
  ASSERT_TRUE(Complete(holder_).ok());
  call->stream->WritesDone();
  const absl::Status ended = FromGrpcStatus(call->stream->Finish());
  EXPECT_TRUE(absl::IsAborted(ended)) << ended;
  EXPECT_FALSE(*artifacts_->Contains(all.ref().sha256()));
}

TEST_F(WorkerServiceTest, AnUploadEndsWithItsToken) {
  const auto call = StartUpload();
  internal::v1::UploadArtifactRequest message = UploadOf("content");
  message.set_data("cont");
  ASSERT_TRUE(call->stream->Write(message));
  while (service_->transfer_count() != 1) std::this_thread::yield();
  ASSERT_TRUE(WriteFileDurably(Tokens(), "{}", 0600).ok());
  clock_.Advance(absl::Seconds(30));  // The file is looked at every few seconds.
  message.Clear();
  message.set_data("ent");
  call->stream->Write(message);
  call->stream->WritesDone();
  EXPECT_EQ(call->stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(WorkerServiceTest, AnUploadThatWasCutOffGoesOn) {
  EXPECT_EQ(*ReceivedBytes("content"), 0);
  const auto call = StartUpload("content", "cont");
  call->context->TryCancel();
  call->stream->Finish().ok();
  while (service_->transfer_count() > 0) std::this_thread::yield();
  EXPECT_EQ(*ReceivedBytes("content"), 4);
  EXPECT_EQ(*ReceivedBytes("another"), 0);
  EXPECT_TRUE(UploadRest("content", 4).ok());
  EXPECT_TRUE(artifacts_->Verify(Sha256Hex("content")).ok());
  // It has come to its end.
  EXPECT_EQ(*ReceivedBytes("content"), 0);
}

TEST_F(WorkerServiceTest, AnUploadWhoseWorkerAsksAgainHasBeenCutOff) {
  // The worker sees it first: nothing has told the server.
  const auto call = StartUpload("content", "cont");
  EXPECT_EQ(*ReceivedBytes("content"), 4);
  EXPECT_TRUE(absl::IsUnavailable(FromGrpcStatus(call->stream->Finish())));
  EXPECT_TRUE(UploadRest("content", 4).ok());
  EXPECT_TRUE(artifacts_->Verify(Sha256Hex("content")).ok());
}

TEST_F(WorkerServiceTest, AnUploadGoesOnOnlyWhereItStopped) {
  StartUpload("content", "cont")->context->TryCancel();
  EXPECT_EQ(*ReceivedBytes("content"), 4);
  for (const int64_t offset : {3, 5, 7}) {
    const absl::Status refused = UploadRest("content", offset);
    EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
    EXPECT_EQ(ErrorReason(refused), "UPLOAD_NOT_KEPT");
  }
  for (const int64_t offset : {int64_t{-1}, int64_t{8}, int64_t{1} << 60}) {
    const auto call = StartUpload();
    internal::v1::UploadArtifactRequest first = UploadOf("content");
    first.set_offset(offset);
    call->stream->Write(first);
    const absl::Status refused = FromGrpcStatus(call->stream->Finish());
    ASSERT_EQ(FieldViolations(refused).size(), 1u) << refused;
    EXPECT_EQ(FieldViolations(refused)[0].field, "offset");
  }
  EXPECT_TRUE(UploadRest("content", 4).ok());
}

TEST_F(WorkerServiceTest, WhatGoesOnIsCheckedLikeTheRest) {
  StartUpload("content", "c0nt")->context->TryCancel();
  EXPECT_EQ(*ReceivedBytes("content"), 4);
  const absl::Status refused = UploadRest("content", 4);
  EXPECT_TRUE(absl::IsDataLoss(refused)) << refused;
  EXPECT_FALSE(*artifacts_->Contains(Sha256Hex("content")));
  // From its beginning then.
  EXPECT_EQ(*ReceivedBytes("content"), 0);
  EXPECT_TRUE(UploadRest("content", 0).ok());
}

TEST_F(WorkerServiceTest, AnUploadOfALostLeaseDoesNotGoOn) {
  StartUpload("content", "cont")->context->TryCancel();
  EXPECT_EQ(*ReceivedBytes("content"), 4);
  internal::v1::CompleteTaskRequest back;
  *back.mutable_lease() = lease_;
  back.mutable_returned()->set_reason("draining");
  ASSERT_TRUE(queue_->CompleteTask(back).ok());
  EXPECT_TRUE(absl::IsAborted(ReceivedBytes("content").status()));
  EXPECT_TRUE(absl::IsAborted(UploadRest("content", 4)));
  // What its worker made before, it makes anew.
  Acquire();
  EXPECT_EQ(*ReceivedBytes("content"), 0);
}

TEST_F(WorkerServiceTest, AFetchThatIsNotReadIsEndedAndGoesOn) {
  // More than the buffers on the way take. A checkpoint is an input of the next attempt.
  const std::string content(64 << 20, 'x');
  ASSERT_TRUE(StoreContent(*artifacts_, content).ok());
  internal::v1::SaveCheckpointRequest checkpoint;
  *checkpoint.mutable_lease() = lease_;
  *checkpoint.add_ref() = ArtifactOf("checkpoint/x", content);
  ASSERT_TRUE(queue_->SaveCheckpoint(checkpoint).ok());
  internal::v1::CompleteTaskRequest back;
  *back.mutable_lease() = lease_;
  back.mutable_returned()->set_reason("draining");
  ASSERT_TRUE(queue_->CompleteTask(back).ok());
  Acquire();

  internal::v1::FetchArtifactRequest request;
  *request.mutable_lease() = lease_;
  request.set_sha256(Sha256Hex(content));
  internal::v1::FetchArtifactResponse response;
  int64_t got = 0;
  {
    const auto context = As(holder_);
    const auto stream = stub_->FetchArtifact(context.get(), request);
    ASSERT_TRUE(stream->Read(&response));
    while (service_->transfer_count() > 0) {
      clock_.Advance(absl::Seconds(61));
      peers_.Look();
    }
    do got += static_cast<int64_t>(response.data().size());
    while (stream->Read(&response));
    EXPECT_LT(got, static_cast<int64_t>(content.size()));
    const absl::Status ended = FromGrpcStatus(stream->Finish());
    EXPECT_TRUE(absl::IsUnavailable(ended)) << ended;
  }
  const auto context = As(holder_);
  request.set_offset(got);
  const auto stream = stub_->FetchArtifact(context.get(), request);
  while (stream->Read(&response)) got += static_cast<int64_t>(response.data().size());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(got, static_cast<int64_t>(content.size()));
}

TEST_F(WorkerServiceTest, AnUploadOfAnAbsurdSizeIsRefusedByName) {
  for (const int64_t size : {int64_t{1} << 60, kMaxArtifactBytes + 1, int64_t{-1}}) {
    const auto call = StartUpload();
    internal::v1::UploadArtifactRequest first = UploadOf("content");
    first.mutable_ref()->set_size_bytes(size);
    call->stream->Write(first);
    const absl::Status refused = FromGrpcStatus(call->stream->Finish());
    ASSERT_EQ(FieldViolations(refused).size(), 1u) << refused;
    EXPECT_EQ(FieldViolations(refused)[0].field, "ref.size_bytes");
    EXPECT_NE(FieldViolations(refused)[0].description.find("1099511627776"), std::string::npos);
  }
}

// Handlers that get a thread only when nobody waits for them any more.
class LateService final : public internal::v1::WorkerService::Service {
 public:
  explicit LateService(WorkerServiceImpl& service) : service_(service) {}
  grpc::Status RegisterWorker(grpc::ServerContext* context,
                              const internal::v1::RegisterWorkerRequest* request,
                              internal::v1::RegisterWorkerResponse* response) override {
    began.Notify();
    while (!context->IsCancelled()) std::this_thread::yield();
    const grpc::Status status = service_.RegisterWorker(context, request, response);
    outcome = FromGrpcStatus(status);
    ended.Notify();
    return status;
  }

  absl::Notification began, ended;
  absl::Status outcome;

 private:
  WorkerServiceImpl& service_;
};

TEST_F(WorkerServiceTest, ACallThatNobodyWaitsForAnyMoreDoesNothing) {
  for (const bool cancelled : {true, false}) {
    LateService late(*service_);
    const auto server = grpc::ServerBuilder().RegisterService(&late).BuildAndStart();
    const auto stub = internal::v1::WorkerService::NewStub(server->InProcessChannel({}));
    internal::v1::RegisterWorkerRequest request;
    request.set_worker("w2");
    request.set_incarnation("late");
    const auto context = As(other_);
    if (!cancelled) {
      context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    }
    std::thread caller([&] {
      internal::v1::RegisterWorkerResponse response;
      EXPECT_FALSE(stub->RegisterWorker(context.get(), request, &response).ok());
    });
    const bool began = late.began.WaitForNotificationWithTimeout(absl::Seconds(60));
    if (cancelled) context->TryCancel();
    caller.join();
    ASSERT_TRUE(began);
    late.ended.WaitForNotification();
    EXPECT_EQ(late.outcome.code(),
              cancelled ? absl::StatusCode::kCancelled : absl::StatusCode::kDeadlineExceeded)
        << late.outcome;
    for (const auto& worker : queue_->LiveWorkers()) EXPECT_NE(worker.name(), "w2");
  }
}

}  // namespace
}  // namespace qpruner::server
