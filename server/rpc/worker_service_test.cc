#include "server/rpc/worker_service.h"

#include <atomic>
#include <optional>

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

TEST(WorkerService, NobodyCompletesATaskWhoseHolderCannotBeLookedUp) {
  TempFolder folder;
  SimulatedClock clock;
  CountingIds ids;
  WatchHub watches;
  QueueObserver observer;
  const auto sqlite = OpenSqliteJobStore({.folder = folder.path() + "/store"}).value();
  UnreadableStore store(*sqlite);
  const auto artifacts =
      OpenLocalArtifactStore({.folder = folder.path() + "/artifacts", .clock = clock}).value();
  const auto proposer = MakeSearchProposer();
  const auto queue =
      JobQueue::Create({}, store, *artifacts, clock, ids, *proposer, watches, observer).value();
  const std::string tokens = folder.path() + "/tokens.json";
  const auto token_of = [&](const std::string& worker) {
    return AddNewToken({.file = tokens, .id = worker, .role = "worker", .workers = {worker}}, ids)
        .value();
  };
  const std::string holder = token_of("w1");
  const std::string other = token_of("w2");
  const auto access = AccessControl::FromFile(tokens, clock).value();
  WorkerServiceImpl service(*queue, *artifacts, *access);
  const std::unique_ptr<grpc::Server> server =
      grpc::ServerBuilder().RegisterService(&service).BuildAndStart();
  const auto stub = internal::v1::WorkerService::NewStub(server->InProcessChannel({}));

  ASSERT_TRUE(queue->CreateJob(*ValidateCreateJob(ScriptedRequest(), {})).ok());
  internal::v1::RegisterWorkerRequest worker;
  worker.set_worker("w1");
  worker.set_incarnation("a");
  ASSERT_TRUE(queue->RegisterWorker(worker).ok());
  internal::v1::AcquireTaskRequest poll;
  poll.set_worker("w1");
  poll.set_incarnation("a");
  std::optional<internal::v1::AcquireTaskResponse> held;
  queue->AcquireTask(poll, [&](auto response) { held = *response; });
  if (!held) queue->Tick();
  ASSERT_TRUE(held && held->has_lease());

  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held->lease();
  *request.mutable_error() = ToRpcStatus(absl::InternalError("not the holder's"));
  const auto complete = [&](const std::string& token) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    google::protobuf::Empty response;
    return FromGrpcStatus(stub->CompleteTask(&context, request, &response));
  };
  EXPECT_TRUE(absl::IsPermissionDenied(complete(other)));
  store.unreadable = true;
  EXPECT_TRUE(absl::IsUnavailable(complete(other)));
  EXPECT_TRUE(absl::IsUnavailable(complete(holder)));
  store.unreadable = false;
  EXPECT_TRUE(queue->FindLeasedTask(held->lease()).ok()) << "somebody ended it";
  EXPECT_TRUE(complete(holder).ok());
  EXPECT_TRUE(complete(holder).ok()) << "a reply that was lost";
  server->Shutdown();
}

}  // namespace
}  // namespace qpruner::server
