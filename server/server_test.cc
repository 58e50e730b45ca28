// The services over an in-process channel, with a worker that is a script.
#include "server/server.h"

#include <atomic>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/queue/job_states.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/scripted_http_server.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskRequest;
using internal::v1::AcquireTaskResponse;

// One call of any stub.
template <typename Stub, typename Request, typename Response>
absl::Status Call(Stub& stub,
                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response* response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  return FromGrpcStatus((stub.*method)(&context, request, response));
}
using Jobs = v1::JobService::Stub;
using Workers = internal::v1::WorkerService::Stub;

class ServerTest : public testing::Test {
 protected:
  ServerTest() { Start({}); }

  void Start(ServerOptions options) {
    server_.reset();
    options.listen = "";
    options.data_dir = folder_.path();
    options.metrics_listen = "off";
    options.version = "1.2.3";
    server_ = Server::Start(std::move(options), RealClock(), SystemIdGenerator()).value();
    channel_ = server_->InProcessChannel();
    jobs_ = v1::JobService::NewStub(channel_);
    workers_ = internal::v1::WorkerService::NewStub(channel_);
  }

  std::string Create(const v1::CreateJobRequest& request = ScriptedRequest()) {
    v1::CompressionJob job;
    const absl::Status status = Call(*jobs_, &Jobs::CreateJob, request, &job);
    EXPECT_TRUE(status.ok()) << status;
    return job.name();
  }
  void Register() {
    internal::v1::RegisterWorkerRequest request;
    request.set_worker("w1");
    request.set_incarnation("a");
    internal::v1::RegisterWorkerResponse response;
    ASSERT_TRUE(Call(*workers_, &Workers::RegisterWorker, request, &response).ok());
    EXPECT_GT(response.lease_duration().seconds(), 0);
  }
  absl::Status Upload(const internal::v1::Lease& lease, const internal::v1::ArtifactRef& ref,
                      const std::string& content) {
    grpc::ClientContext context;
    google::protobuf::Empty empty;
    auto writer = workers_->UploadArtifact(&context, &empty);
    internal::v1::UploadArtifactRequest message;
    *message.mutable_lease() = lease;
    *message.mutable_ref() = ref;
    message.set_data(content);
    writer->Write(message);
    writer->WritesDone();
    return FromGrpcStatus(writer->Finish());
  }
  AcquireTaskResponse Acquire() {
    AcquireTaskRequest request;
    request.set_worker("w1");
    request.set_incarnation("a");
    request.mutable_wait_time()->set_seconds(10);
    AcquireTaskResponse response;
    const absl::Status status = Call(*workers_, &Workers::AcquireTask, request, &response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }
  void Complete(const AcquireTaskResponse& held) {
    for (const std::string& path : OutputsOf(held.task())) {
      ASSERT_TRUE(Upload(held.lease(), ArtifactOf(path, ContentOf(path)), ContentOf(path)).ok());
    }
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_result() = ScriptedResult(held.task());
    google::protobuf::Empty empty;
    ASSERT_TRUE(Call(*workers_, &Workers::CompleteTask, request, &empty).ok());
  }
  void RunJob() {
    while (true) {
      const AcquireTaskResponse held = Acquire();
      ASSERT_TRUE(held.has_lease());
      Complete(held);
      if (held.lease().task() == "finalize") return;
    }
  }
  std::vector<v1::JobEvent> Watch(const std::string& name, int64_t after, absl::Status* end) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(after);
    auto reader = jobs_->WatchJob(&context, request);
    std::vector<v1::JobEvent> events;
    v1::JobEvent event;
    while (reader->Read(&event)) events.push_back(event);
    *end = FromGrpcStatus(reader->Finish());
    return events;
  }

  TempFolder folder_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<Workers> workers_;
};

TEST_F(ServerTest, AWatcherSeesEveryEventOnceWhileTheJobRunsAndOnReplay) {
  Register();
  const std::string name = Create();
  absl::Status live_end, replay_end;
  std::vector<v1::JobEvent> live;
  std::thread watcher([&] { live = Watch(name, 0, &live_end); });
  RunJob();
  watcher.join();
  EXPECT_TRUE(live_end.ok()) << live_end;
  ASSERT_FALSE(live.empty());
  for (size_t i = 0; i < live.size(); ++i) {
    EXPECT_EQ(live[i].sequence(), static_cast<int64_t>(i) + 1);
  }
  EXPECT_EQ(live.back().state_changed().state(), v1::CompressionJob::SUCCEEDED);

  for (int64_t after : {int64_t{0}, int64_t{5}, live.back().sequence() - 1}) {
    const auto replay = Watch(name, after, &replay_end);
    EXPECT_TRUE(replay_end.ok());
    ASSERT_EQ(replay.size(), live.size() - after);
    for (size_t i = 0; i < replay.size(); ++i) {
      EXPECT_EQ(replay[i].SerializeAsString(), live[after + i].SerializeAsString());
    }
  }
  EXPECT_TRUE(Watch(name, live.back().sequence(), &replay_end).empty());
  EXPECT_TRUE(replay_end.ok());
}

TEST_F(ServerTest, WatchingRefusesBadRequestsAndUnknownJobs) {
  absl::Status end;
  Watch("nonsense", -1, &end);
  EXPECT_EQ(FieldViolations(end).size(), 2u) << end;
  Watch("projects/default/jobs/none", 0, &end);
  EXPECT_EQ(ErrorReason(end), "JOB_NOT_FOUND");
}

TEST_F(ServerTest, ShutdownEndsWatches) {
  Register();
  const std::string name = Create();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  v1::WatchJobRequest request;
  request.set_name(name);
  auto reader = jobs_->WatchJob(&context, request);
  v1::JobEvent event;
  // The stream is open.
  ASSERT_TRUE(reader->Read(&event));
  server_->Shutdown();
  while (reader->Read(&event)) {
  }
  const absl::Status end = FromGrpcStatus(reader->Finish());
  EXPECT_TRUE(absl::IsUnavailable(end)) << end;
  EXPECT_EQ(ErrorReason(end), "SERVER_STOPPING");
}

// The sweep's look and an upload hang in a storage that has gone silent.
TEST_F(ServerTest, ShutdownDoesNotWaitForAStorageThatHangs) {
  using Reply = ScriptedHttpServer::Reply;
  std::string owner;
  absl::Notification swept, uploaded;
  ScriptedHttpServer storage([&](const ScriptedHttpServer::Request& request) -> Reply {
    if (absl::StrContains(request.target, "/owner")) {
      if (request.method == "PUT") owner = request.body;
      if (owner.empty()) return {.status = 404};
      return {.status = request.method == "PUT" ? 200 : 206,
              .headers = {{"Content-Range",
                           absl::StrCat("bytes 0-", owner.size() - 1, "/", owner.size())}},
              .body = owner};
    }
    if (absl::StrContains(request.target, "max-keys=1")) return {};
    absl::Notification& asked = request.method == "PUT" ? uploaded : swept;
    if (!asked.HasBeenNotified()) asked.Notify();
    return {.body = "x", .cut_after = 0, .then = Reply::Then::kStall};
  });
  ServerOptions options;
  options.artifacts_s3.emplace();
  options.artifacts_s3->location = {"bucket", "p"};
  options.artifacts_s3->s3.endpoint = storage.url();
  options.artifacts_s3->s3.credentials = {"key", "secret", ""};
  options.shutdown_grace = absl::Milliseconds(500);
  Start(std::move(options));
  swept.WaitForNotification();
  Register();
  Create();
  const AcquireTaskResponse held = Acquire();
  absl::Status upload;
  std::thread uploading(
      [&] { upload = Upload(held.lease(), ArtifactOf("prepared/a", "abc"), "abc"); });
  uploaded.WaitForNotification();
  const absl::Time begin = absl::Now();
  server_->Shutdown();
  // Without an end of its own, a call is tried five times for 20 s.
  EXPECT_LT(absl::Now() - begin, absl::Seconds(15));
  uploading.join();
  EXPECT_FALSE(upload.ok());
}

TEST_F(ServerTest, AnArtifactComesBackFromAnyOffset) {
  Register();
  const std::string name = Create();
  RunJob();
  const std::string content = ContentOf("model/model.safetensors");
  auto download = [&](const std::string& artifact, int64_t offset, absl::Status* end) {
    grpc::ClientContext context;
    v1::DownloadArtifactRequest request;
    request.set_name(artifact);
    request.set_offset(offset);
    auto reader = jobs_->DownloadArtifact(&context, request);
    std::string bytes;
    v1::DownloadArtifactResponse chunk;
    while (reader->Read(&chunk)) bytes += chunk.data();
    *end = FromGrpcStatus(reader->Finish());
    return bytes;
  };
  absl::Status end;
  const std::string artifact = name + "/artifacts/model/model.safetensors";
  EXPECT_EQ(download(artifact, 0, &end), content);
  EXPECT_TRUE(end.ok()) << end;
  EXPECT_EQ(download(artifact, 5, &end), content.substr(5));
  EXPECT_EQ(download(artifact, static_cast<int64_t>(content.size()), &end), "");
  EXPECT_TRUE(end.ok());
  download(artifact, static_cast<int64_t>(content.size()) + 1, &end);
  EXPECT_TRUE(absl::IsOutOfRange(end));
  download(name + "/artifacts/none", 0, &end);
  EXPECT_EQ(ErrorReason(end), "ARTIFACT_NOT_FOUND");
}

TEST_F(ServerTest, UploadsAreCheckedAndNeedALease) {
  Register();
  Create();
  const AcquireTaskResponse held = Acquire();
  EXPECT_TRUE(absl::IsDataLoss(Upload(held.lease(), ArtifactOf("prepared/a", "abc"), "abd")));
  EXPECT_EQ(FieldViolations(Upload(held.lease(), ArtifactOf("../a", "abc"), "abc")).size(), 1u);
  internal::v1::Lease stale = held.lease();
  stale.set_token("0");
  EXPECT_EQ(ErrorReason(Upload(stale, ArtifactOf("prepared/a", "abc"), "abc")), "LEASE_SUPERSEDED");
}

TEST_F(ServerTest, ListingsPageAndRefuseForeignTokens) {
  Register();
  const std::string name = Create();
  RunJob();
  v1::ListTrialsRequest request;
  request.set_parent(name);
  request.set_page_size(5);
  v1::ListTrialsResponse first, second;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListTrials, request, &first).ok());
  EXPECT_EQ(first.trials_size(), 5);
  request.set_page_token(first.next_page_token());
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListTrials, request, &second).ok());
  EXPECT_EQ(second.trials_size(), 3);
  EXPECT_EQ(second.trials(0).index(), 6);
  EXPECT_EQ(second.next_page_token(), "");
  request.set_page_token("x");
  EXPECT_EQ(FieldViolations(Call(*jobs_, &Jobs::ListTrials, request, &second))[0].field,
            "page_token");
  request.set_page_size(-1);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(*jobs_, &Jobs::ListTrials, request, &second)));
  v1::ListJobsRequest list;
  list.set_page_token("nonsense");
  v1::ListJobsResponse jobs;
  EXPECT_TRUE(absl::IsInvalidArgument(Call(*jobs_, &Jobs::ListJobs, list, &jobs)));
}

TEST_F(ServerTest, ValidateOnlyStoresNothing) {
  auto request = ScriptedRequest();
  request.set_validate_only(true);
  v1::CompressionJob job;
  ASSERT_TRUE(Call(*jobs_, &Jobs::CreateJob, request, &job).ok());
  EXPECT_EQ(job.name(), "");
  EXPECT_EQ(job.spec().search().max_trials(), 8);
  v1::ListJobsResponse jobs;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListJobs, v1::ListJobsRequest(), &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 0);
}

TEST_F(ServerTest, CapabilitiesNameTheLiveWorkers) {
  Register();
  v1::ListCapabilitiesResponse response;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListCapabilities, v1::ListCapabilitiesRequest(), &response).ok());
  EXPECT_EQ(response.server_version(), "1.2.3");
  ASSERT_EQ(response.workers_size(), 1);
  EXPECT_EQ(response.workers(0).name(), "w1");
}

TEST(ListenAddress, OnlyLoopbackWithoutInsecure) {
  for (const char* address : {"127.0.0.1:0", "localhost:7421", "[::1]:7421", "unix:/tmp/x"}) {
    EXPECT_TRUE(CheckListenAddress(address, false, false).ok()) << address;
  }
  for (const char* address :
       {"0.0.0.0:7421", "[::]:7421", "10.0.0.1:7421", "127.0.0.1.evil.org:1"}) {
    EXPECT_FALSE(CheckListenAddress(address, false, false).ok()) << address;
    EXPECT_TRUE(CheckListenAddress(address, false, true).ok()) << address;
  }
  for (const char* address : {"7421", ":7421", "127.0.0.1:x", "127.0.0.1:70000"}) {
    EXPECT_FALSE(CheckListenAddress(address, false, true).ok()) << address;
  }
}

TEST(MetricsAddress, OnlyLoopbackUnlessAskedFor) {
  for (const char* address : {"off", "127.0.0.1:0", "localhost:9464", "[::1]:9464"}) {
    EXPECT_TRUE(CheckMetricsAddress(address, false).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464"}) {
    const absl::Status refused = CheckMetricsAddress(address, false);
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << address;
    EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("--insecure-metrics"));
    EXPECT_TRUE(CheckMetricsAddress(address, true).ok()) << address;
  }
  for (const char* address : {"9464", ":9464", "127.0.0.1:x", "unix:/tmp/x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckMetricsAddress(address, true))) << address;
  }
}

// Before anything is opened.
TEST(MetricsAddress, IsCheckedAtTheStart) {
  const absl::Status status =
      Server::Start({.listen = "", .metrics_listen = "0.0.0.0:0"}, RealClock(), SystemIdGenerator())
          .status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("--metrics-listen 0.0.0.0:0"));
}

TEST(QueueTimes, ALeaseOutlivesALostHeartbeat) {
  JobQueueOptions queue;
  EXPECT_TRUE(CheckQueueTimes(queue).ok());
  queue.lease_duration = 2 * queue.heartbeat_interval;
  EXPECT_TRUE(absl::IsInvalidArgument(CheckQueueTimes(queue)));
  queue.lease_duration = absl::InfiniteDuration();
  EXPECT_TRUE(absl::IsInvalidArgument(CheckQueueTimes(queue)));
  queue = {};
  queue.heartbeat_interval = absl::ZeroDuration();
  EXPECT_TRUE(absl::IsInvalidArgument(CheckQueueTimes(queue)));
  queue = {};
  queue.retry_backoff = -absl::Seconds(1);
  EXPECT_TRUE(absl::IsInvalidArgument(CheckQueueTimes(queue)));
}

}  // namespace
}  // namespace qpruner::server
