#include "server/rpc/download_stream.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/store/sqlite_job_store.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

// A server of DownloadArtifact alone.
class DownloadService final
    : public v1::JobService::WithCallbackMethod_DownloadArtifact<v1::JobService::Service> {
 public:
  DownloadService(JobStore& store, ArtifactStore& artifacts, CallbackExecutor& executor,
                  PeerWatchdog& peers)
      : store_(store), artifacts_(artifacts), executor_(executor), peers_(peers) {}
  grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* DownloadArtifact(
      grpc::CallbackServerContext* context, const v1::DownloadArtifactRequest* request) override {
    return StartDownloadStream(
        *context, *request, store_, artifacts_, executor_, peers_, [] { return absl::OkStatus(); },
        [] {}, limit_.Take("projects/p").value());
  }
  int open_count() { return limit_.count(); }

 private:
  JobStore& store_;
  ArtifactStore& artifacts_;
  CallbackExecutor& executor_;
  PeerWatchdog& peers_;
  StreamLimit limit_{{.what = "", .reason = "", .most = 2, .most_of_a_holder = 2}};
};

TEST(DownloadStream, AClientThatDoesNotReadIsDroppedAndMayGoOn) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "64 MiB pass through gRPC, whose order the sanitizer does not see: millions of "
                  "suppressed reports take minutes, and what they would show is suppressed";
#endif
  TempFolder folder;
  SimulatedClock clock;
  const auto store = OpenSqliteJobStore({.folder = folder.path() + "/store"}).value();
  const auto artifacts =
      OpenLocalArtifactStore({.folder = folder.path() + "/artifacts", .clock = clock}).value();
  // More than the buffers between a server and a client that does not read can take.
  const std::string content(64 << 20, 'x');
  ASSERT_TRUE(StoreContent(*artifacts, content).ok());
  const JobName job{"p", "j"};
  v1::Artifact artifact;
  artifact.set_name(job.ArtifactName("model/x"));
  artifact.set_sha256(Sha256Hex(content));
  artifact.set_size_bytes(static_cast<int64_t>(content.size()));
  internal::v1::JobRecord record;
  record.mutable_job()->set_name(job.ToString());
  record.mutable_job()->set_state(v1::CompressionJob::RUNNING);
  ASSERT_TRUE(store
                  ->Transact([&](StoreTransaction& transaction) -> absl::Status {
                    RETURN_IF_ERROR(transaction.InsertJob(record));
                    return transaction.PutArtifact(job, artifact);
                  })
                  .ok());
  CallbackExecutor executor(1);
  PeerWatchdog peers(clock, absl::Seconds(60), absl::InfiniteDuration());
  DownloadService service(*store, *artifacts, executor, peers);
  int port = 0;
  const std::unique_ptr<grpc::Server> server =
      grpc::ServerBuilder()
          .AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port)
          .RegisterService(&service)
          .BuildAndStart();
  const auto stub = v1::JobService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));

  v1::DownloadArtifactRequest request;
  request.set_name(artifact.name());
  v1::DownloadArtifactResponse response;
  int64_t got = 0;
  {
    grpc::ClientContext context;
    const auto stream = stub->DownloadArtifact(&context, request);
    ASSERT_TRUE(stream->Read(&response));
    // Nothing is read any more.
    while (service.open_count() > 0) {
      clock.Advance(absl::Seconds(61));
      peers.Look();
    }
    do got += static_cast<int64_t>(response.data().size());
    while (stream->Read(&response));
    EXPECT_LT(got, artifact.size_bytes());
    const absl::Status dropped = FromGrpcStatus(stream->Finish());
    EXPECT_TRUE(absl::IsUnavailable(dropped)) << dropped;
  }
  grpc::ClientContext context;
  request.set_offset(got);
  const auto stream = stub->DownloadArtifact(&context, request);
  while (stream->Read(&response)) got += static_cast<int64_t>(response.data().size());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(got, artifact.size_bytes());
  server->Shutdown();
}

}  // namespace
}  // namespace qpruner::server
