// Who gets URLs of artifacts, and what they are good for: a server on a real S3 storage.
#include <sys/wait.h>

#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/child_process.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "net/http_client.h"
#include "proto/grpc_status.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/auth/token_table.h"
#include "server/server.h"
#include "server/testing/scripted_job.h"
#include "server/testing/versity_gateway.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kLarge[] = "prepared/model.safetensors";
constexpr char kSmall[] = "report/scores.json";

// What a download came to.
struct Downloaded {
  absl::Status status;
  std::string data;
  v1::SignedUrl url;
};

class PresignedTransferTest : public testing::Test {
 protected:
  using Workers = internal::v1::WorkerService::Stub;

  void SetUp() override {
    if (VersityGateway::Shared() == nullptr) GTEST_SKIP() << "no S3 server to test against";
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_)));
    const std::string tokens = folder_.path() + "/tokens.json";
    const auto add = [&](NewTokenOptions token) {
      token.file = tokens;
      return AddNewToken(token, SystemIdGenerator()).value();
    };
    owner_ = add({.id = "owner", .role = "client", .projects = {"default"}});
    stranger_ = add({.id = "stranger", .role = "client", .projects = {"other"}});
    worker_ = add({.id = "w1-token", .role = "worker", .workers = {"w1"}});
    other_worker_ = add({.id = "w2-token", .role = "worker", .workers = {"w2"}});
    options_.token_file = tokens;
    options_.artifacts_s3.emplace();
    options_.artifacts_s3->location = {VersityGateway::Shared()->NewBucket(), "p"};
    options_.artifacts_s3->s3 = VersityGateway::Shared()->options();
    options_.artifacts_s3->url_lifetime = absl::Minutes(5);
  }
  void TearDown() override {
    server_.reset();
    spdlog::set_default_logger(logger_before_);
  }

  // Also again, with other options.
  void Start() {
    server_.reset();
    ServerOptions options = options_;
    options.listen = "";
    options.data_dir = folder_.path() + "/data";
    options.metrics_listen = "off";
    options.version = "1.2.3";
    auto server = Server::Start(std::move(options), RealClock(), SystemIdGenerator());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto channel = server_->InProcessChannel();
    jobs_ = v1::JobService::NewStub(channel);
    workers_ = internal::v1::WorkerService::NewStub(channel);
  }
  static void Prepare(grpc::ClientContext& context, const std::string& token) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    context.AddMetadata("authorization", "Bearer " + token);
  }
  template <typename Request, typename Response>
  void Work(grpc::Status (Workers::*method)(grpc::ClientContext*, const Request&, Response*),
            const Request& request, Response* response) {
    grpc::ClientContext context;
    Prepare(context, worker_);
    const absl::Status status = FromGrpcStatus(((*workers_).*method)(&context, request, response));
    ASSERT_TRUE(status.ok()) << status;
  }
  internal::v1::AcquireTaskResponse Acquire() {
    internal::v1::AcquireTaskRequest request;
    request.set_worker("w1");
    request.set_incarnation("a");
    request.mutable_wait_time()->set_seconds(20);
    internal::v1::AcquireTaskResponse held;
    Work(&Workers::AcquireTask, request, &held);
    return held;
  }
  struct PreparedUpload {
    absl::Status status;
    internal::v1::PrepareUploadResponse response;
  };
  PreparedUpload PrepareUpload(const internal::v1::Lease& lease,
                               const internal::v1::ArtifactRef& ref, const std::string& token) {
    grpc::ClientContext context;
    Prepare(context, token);
    internal::v1::PrepareUploadRequest request;
    *request.mutable_lease() = lease;
    *request.mutable_ref() = ref;
    PreparedUpload prepared;
    prepared.status =
        FromGrpcStatus(workers_->PrepareUpload(&context, request, &prepared.response));
    return prepared;
  }
  // As a worker does: to the storage if there is a URL.
  void Upload(const internal::v1::Lease& lease, const std::string& path,
              const std::string& content) {
    const PreparedUpload prepared = PrepareUpload(lease, ArtifactOf(path, content), worker_);
    ASSERT_TRUE(prepared.status.ok()) << prepared.status;
    if (prepared.response.has_url()) {
      ++direct_upload_count_;
      HttpRequest request{.method = "PUT", .url = prepared.response.url().url()};
      for (const auto& [name, value] : prepared.response.headers()) {
        request.headers.emplace_back(name, value);
      }
      request.body = content;
      const auto stored = HttpClient().Send(request);
      ASSERT_TRUE(stored.ok() && stored->ok()) << stored.status();
      return;
    }
    grpc::ClientContext context;
    Prepare(context, worker_);
    google::protobuf::Empty empty;
    const auto writer = workers_->UploadArtifact(&context, &empty);
    internal::v1::UploadArtifactRequest message;
    *message.mutable_lease() = lease;
    *message.mutable_ref() = ArtifactOf(path, content);
    for (size_t at = 0; at < content.size(); at += 1 << 20) {
      message.set_data(content.substr(at, 1 << 20));
      writer->Write(message);
      message.Clear();
    }
    writer->WritesDone();
    const absl::Status status = FromGrpcStatus(writer->Finish());
    ASSERT_TRUE(status.ok()) << status;
  }
  // Makes a job and does its first task. Returns the second one, which has what the first made
  // among its inputs.
  internal::v1::AcquireTaskResponse MakeArtifacts() {
    grpc::ClientContext context;
    Prepare(context, owner_);
    v1::CompressionJob job;
    EXPECT_TRUE(jobs_->CreateJob(&context, ScriptedRequest(), &job).ok());
    job_ = job.name();
    internal::v1::RegisterWorkerRequest registration;
    registration.set_worker("w1");
    registration.set_incarnation("a");
    internal::v1::RegisterWorkerResponse registered;
    Work(&Workers::RegisterWorker, registration, &registered);
    const internal::v1::AcquireTaskResponse held = Acquire();
    internal::v1::CompleteTaskRequest complete;
    *complete.mutable_lease() = held.lease();
    *complete.mutable_result() = ScriptedResult(held.task());
    for (internal::v1::ArtifactRef& output : *complete.mutable_result()->mutable_outputs()) {
      const std::string content = output.path() == kLarge ? content_ : ContentOf(output.path());
      output = ArtifactOf(output.path(), content);
      Upload(held.lease(), output.path(), content);
    }
    google::protobuf::Empty empty;
    Work(&Workers::CompleteTask, complete, &empty);
    return Acquire();
  }

  Downloaded Download(const std::string& path, const std::string& token, int64_t offset = 0,
                      bool accept_url = true) {
    grpc::ClientContext context;
    Prepare(context, token);
    v1::DownloadArtifactRequest request;
    request.set_name(job_ + "/artifacts/" + path);
    request.set_offset(offset);
    request.set_accept_url(accept_url);
    return Receive<v1::DownloadArtifactResponse>(*jobs_->DownloadArtifact(&context, request));
  }
  Downloaded Fetch(const internal::v1::Lease& lease, const std::string& sha256,
                   const std::string& token, int64_t offset = 0) {
    grpc::ClientContext context;
    Prepare(context, token);
    internal::v1::FetchArtifactRequest request;
    *request.mutable_lease() = lease;
    request.set_sha256(sha256);
    request.set_offset(offset);
    request.set_accept_url(true);
    return Receive<internal::v1::FetchArtifactResponse>(
        *workers_->FetchArtifact(&context, request));
  }
  template <typename Response>
  static Downloaded Receive(grpc::ClientReader<Response>& stream) {
    Downloaded downloaded;
    Response response;
    while (stream.Read(&response)) {
      downloaded.data += response.data();
      if (response.has_url()) downloaded.url = response.url();
    }
    downloaded.status = FromGrpcStatus(stream.Finish());
    return downloaded;
  }
  void ExpectUrl(const Downloaded& downloaded) {
    ASSERT_TRUE(downloaded.status.ok()) << downloaded.status;
    EXPECT_EQ(downloaded.data, "");
    EXPECT_EQ(downloaded.url.size_bytes(), static_cast<int64_t>(content_.size()));
    EXPECT_NEAR(static_cast<double>(downloaded.url.expire_time().seconds()),
                static_cast<double>(absl::ToUnixSeconds(absl::Now())) + 300, 60);
    HttpRequest request{.url = downloaded.url.url()};
    const auto got = HttpClient().Send(request);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->status, 200);
    EXPECT_EQ(got->body, content_);
  }
  void ExpectNothing(const Downloaded& downloaded, absl::StatusCode code) {
    EXPECT_EQ(downloaded.status.code(), code) << downloaded.status;
    EXPECT_EQ(downloaded.url.url() + downloaded.data, "");
  }

  const std::string content_ = std::string(2 << 20, 'x') + "end";
  TempFolder folder_;
  const std::shared_ptr<spdlog::logger> logger_before_ = spdlog::default_logger();
  std::ostringstream log_;
  ServerOptions options_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<Workers> workers_;
  std::string owner_, stranger_, worker_, other_worker_, job_;
  int direct_upload_count_ = 0;
};

TEST_F(PresignedTransferTest, AClientGetsAUrlOfWhatItMayRead) {
  Start();
  MakeArtifacts();
  ExpectUrl(Download(kLarge, owner_));
  ExpectUrl(Download(kLarge, owner_, 1000));
  ExpectNothing(Download(kLarge, stranger_), absl::StatusCode::kNotFound);
  ExpectNothing(Download(kLarge, worker_), absl::StatusCode::kPermissionDenied);
  ExpectNothing(Download(kLarge, "nonsense"), absl::StatusCode::kUnauthenticated);
  ExpectNothing(Download("prepared/none", owner_), absl::StatusCode::kNotFound);
  ExpectNothing(Download(kLarge, owner_, static_cast<int64_t>(content_.size()) + 1),
                absl::StatusCode::kOutOfRange);
  // Nor does the log show it to those who read that.
  EXPECT_THAT(log_.str(), Not(HasSubstr("X-Amz")));
}

TEST_F(PresignedTransferTest, AWorkerGetsAUrlOfItsTasksInputs) {
  Start();
  const internal::v1::AcquireTaskResponse held = MakeArtifacts();
  const std::string sha256 = Sha256Hex(content_);
  ExpectUrl(Fetch(held.lease(), sha256, worker_));
  ExpectUrl(Fetch(held.lease(), sha256, worker_, 1000));
  ExpectNothing(Fetch(held.lease(), sha256, other_worker_), absl::StatusCode::kPermissionDenied);
  ExpectNothing(Fetch(held.lease(), Sha256Hex("no input"), worker_), absl::StatusCode::kNotFound);
  internal::v1::Lease stale = held.lease();
  stale.set_token("of another");
  ExpectNothing(Fetch(stale, sha256, worker_), absl::StatusCode::kAborted);
  EXPECT_THAT(log_.str(), Not(HasSubstr("X-Amz")));
}

TEST_F(PresignedTransferTest, AWorkerGetsAUrlForWhatItMayUpload) {
  options_.artifacts_s3->upload_urls = true;
  Start();
  const internal::v1::AcquireTaskResponse held = MakeArtifacts();
  EXPECT_EQ(direct_upload_count_, 1) << "the large one";
  EXPECT_EQ(Download(kLarge, owner_, 0, /*accept_url=*/false).data, content_);

  const auto code_of = [&](const internal::v1::Lease& lease, const internal::v1::ArtifactRef& ref,
                           const std::string& token) {
    const PreparedUpload prepared = PrepareUpload(lease, ref, token);
    EXPECT_FALSE(prepared.response.has_url());
    return prepared.status.code();
  };
  const internal::v1::ArtifactRef ref = ArtifactOf("prepared/x", content_);
  EXPECT_TRUE(PrepareUpload(held.lease(), ref, worker_).response.has_url());
  EXPECT_EQ(code_of(held.lease(), ref, other_worker_), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(code_of(held.lease(), ref, owner_), absl::StatusCode::kPermissionDenied);
  internal::v1::Lease stale = held.lease();
  stale.set_token("of another");
  EXPECT_EQ(code_of(stale, ref, worker_), absl::StatusCode::kAborted);
  internal::v1::ArtifactRef climbing = ref;
  climbing.set_path("../x");
  EXPECT_EQ(code_of(held.lease(), climbing, worker_), absl::StatusCode::kInvalidArgument);
  internal::v1::ArtifactRef no_hash = ref;
  no_hash.set_sha256("../owner");
  EXPECT_EQ(code_of(held.lease(), no_hash, worker_), absl::StatusCode::kInvalidArgument);
  internal::v1::ArtifactRef huge = ref;
  huge.set_size_bytes(int64_t{6} << 30);
  EXPECT_EQ(code_of(held.lease(), huge, worker_), absl::StatusCode::kOk);
  EXPECT_THAT(log_.str(), Not(HasSubstr("X-Amz")));
}

TEST_F(PresignedTransferTest, WhatIsSmallOrNotAskedForOrSwitchedOffComesAsBytes) {
  Start();
  MakeArtifacts();
  EXPECT_EQ(direct_upload_count_, 0);
  EXPECT_EQ(Download(kSmall, owner_).data, ContentOf(kSmall));
  EXPECT_EQ(Download(kLarge, owner_, static_cast<int64_t>(content_.size()) - 3).data, "end");
  EXPECT_EQ(Download(kLarge, owner_, 0, /*accept_url=*/false).data, content_);
  options_.artifacts_s3->url_lifetime = absl::ZeroDuration();
  Start();
  EXPECT_EQ(Download(kLarge, owner_).data, content_);
}

TEST(PresignFlags, WhatMakesNoSenseIsRefusedAtTheStart) {
  const char* bin = getenv("QPRUNER_BIN_DIR");
  TempFolder folder;
  const std::string output = folder.path() + "/output";
  const auto start = [&](std::vector<std::string> arguments) {
    arguments.insert(
        arguments.begin(),
        {absl::StrCat(bin != nullptr ? bin : "build/release/bin", "/qpruner-server"), "--listen",
         "127.0.0.1:0", "--metrics-listen", "off", "--data-dir", folder.path() + "/data"});
    const auto process = ChildProcess::Spawn(
        {.argv = arguments,
         .extra_environment = {"AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=secret"},
         .output_path = output});
    if (!process.ok()) return process.status().ToString();
    EXPECT_TRUE((*process)->WaitFor(absl::Seconds(60)));
    const int status = (*process)->Poll().value_or(0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 2) << DescribeWaitStatus(status);
    return ReadFile(output, 1 << 20).value_or("");
  };
  EXPECT_THAT(start({"--s3-presign", "downloads"}), HasSubstr("--artifacts-url is not"));
  EXPECT_THAT(start({"--s3-presign", "all"}), HasSubstr("--artifacts-url is not"));
  EXPECT_THAT(start({"--s3-presign", "uploads"}), HasSubstr("--s3-presign"));
  for (const char* expiry : {"0s", "61m", "soon"}) {
    EXPECT_THAT(start({"--artifacts-url", "s3://bucket/p", "--s3-endpoint", "http://127.0.0.1:1",
                       "--s3-presign", "downloads", "--s3-presign-expiry", expiry}),
                HasSubstr("--s3-presign-expiry"));
  }
}

}  // namespace
}  // namespace qpruner::server
