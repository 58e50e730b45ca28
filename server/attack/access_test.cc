// What strangers, and bearers of the wrong token, can do to a server: nothing. The threats are
// listed in docs/security.md, each with its test here.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/types/span.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "google/protobuf/dynamic_message.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/channel_security.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/auth/token_table.h"
#include "server/rpc/connection_acceptor.h"
#include "server/server.h"
#include "server/testing/captured_log.h"
#include "server/testing/postgres_cluster.h"
#include "server/testing/scripted_job.h"
#include "server/testing/test_certificates.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using google::protobuf::Reflection;
using google::protobuf::ServiceDescriptor;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const ServiceDescriptor* JobServiceMethods() {
  return v1::CreateJobRequest::descriptor()->file()->FindServiceByName("JobService");
}
const ServiceDescriptor* WorkerServiceMethods() {
  return internal::v1::AcquireTaskRequest::descriptor()->file()->FindServiceByName("WorkerService");
}

using Headers = std::multimap<std::string, std::string>;
Headers Bearer(const std::string& token) { return {{"authorization", "Bearer " + token}}; }

// Any method with any message, so that a method that is added tomorrow is attacked, too.
absl::Status CallAny(const std::shared_ptr<grpc::Channel>& channel, const MethodDescriptor& method,
                     const Message& request, const Headers& headers) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  for (const auto& [name, value] : headers) context.AddMetadata(name, value);
  const std::string bytes = request.SerializeAsString();
  grpc::Slice slice(bytes);
  grpc::ByteBuffer out(&slice, 1), in;
  grpc::GenericStub stub(channel);
  absl::Notification done;
  grpc::Status status;
  stub.UnaryCall(&context, "/" + method.service()->full_name() + "/" + method.name(), {}, &out, &in,
                 [&](grpc::Status end) {
                   status = std::move(end);
                   done.Notify();
                 });
  done.WaitForNotification();
  return FromGrpcStatus(status);
}

std::unique_ptr<Message> NewRequest(const MethodDescriptor& method) {
  return std::unique_ptr<Message>(google::protobuf::MessageFactory::generated_factory()
                                      ->GetPrototype(method.input_type())
                                      ->New());
}

// The request of a method about one job; null for the others.
std::unique_ptr<Message> RequestAbout(const MethodDescriptor& method, const std::string& job) {
  if (method.name() == "CreateJob" || method.name() == "ListJobs") return nullptr;
  for (const char* field : {"name", "parent"}) {
    const FieldDescriptor* found = method.input_type()->FindFieldByName(field);
    if (found == nullptr) continue;
    auto request = NewRequest(method);
    request->GetReflection()->SetString(
        request.get(), found,
        method.name() == "DownloadArtifact" ? job + "/artifacts/model/config.json" : job);
    return request;
  }
  return nullptr;
}

class AttackTest : public testing::Test {
 protected:
  void Start(ServerOptions options = {}, Clock& clock = RealClock()) {
    options.listen = "127.0.0.1:0";
    options.data_dir = folder_.path() + "/data";
    options.metrics_listen = "off";
    options.version = "1.2.3";
    absl::StatusOr<std::unique_ptr<Server>> server =
        Server::Start(std::move(options), clock, SystemIdGenerator());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = OpenSecureChannel(server_->address(), {}, {}).value();
    jobs_ = v1::JobService::NewStub(channel_);
    workers_ = internal::v1::WorkerService::NewStub(channel_);
  }
  void StartWithTokens() {
    const auto add = [&](NewTokenOptions token) {
      token.file = TokenPath();
      return AddNewToken(token, SystemIdGenerator()).value();
    };
    owner_ = add({.id = "owner", .role = "client", .projects = {"default"}});
    stranger_ = add({.id = "stranger", .role = "client", .projects = {"other"}});
    expired_ =
        add({.id = "expired", .role = "client", .projects = {"default"}, .expires = "2020-01-01"});
    admin_ = add({.id = "admin", .role = "admin"});
    worker_ = add({.id = "w1-token", .role = "worker", .workers = {"w1"}});
    other_worker_ = add({.id = "w2-token", .role = "worker", .workers = {"w2"}});
    ServerOptions options;
    options.token_file = TokenPath();
    Start(std::move(options));
  }
  std::string TokenPath() const { return folder_.path() + "/tokens.json"; }

  template <typename Stub, typename Request, typename Response>
  absl::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response, const std::string& token = "") {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    return FromGrpcStatus((stub.*method)(&context, request, response));
  }
  std::string Create(const std::string& token = "") {
    v1::CompressionJob job;
    const absl::Status status =
        Call(*jobs_, &v1::JobService::Stub::CreateJob, ScriptedRequest(), &job, token);
    EXPECT_TRUE(status.ok()) << status;
    return job.name();
  }
  internal::v1::AcquireTaskResponse Lease(const std::string& device = "") {
    internal::v1::RegisterWorkerRequest registration;
    registration.set_worker("w1");
    registration.set_incarnation("a");
    registration.set_device(device);
    internal::v1::RegisterWorkerResponse registered;
    EXPECT_TRUE(Call(*workers_, &internal::v1::WorkerService::Stub::RegisterWorker, registration,
                     &registered, worker_)
                    .ok());
    internal::v1::AcquireTaskRequest request;
    request.set_worker("w1");
    request.set_incarnation("a");
    request.mutable_wait_time()->set_seconds(20);
    internal::v1::AcquireTaskResponse held;
    EXPECT_TRUE(
        Call(*workers_, &internal::v1::WorkerService::Stub::AcquireTask, request, &held, worker_)
            .ok());
    EXPECT_TRUE(held.has_lease());
    return held;
  }
  // A connection that an attack has cost is made anew first.
  bool Answers() {
    absl::Status status;
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    do {
      v1::ListCapabilitiesResponse response;
      status = Call(*jobs_, &v1::JobService::Stub::ListCapabilities, v1::ListCapabilitiesRequest(),
                    &response, owner_);
    } while (absl::IsUnavailable(status) && absl::Now() < deadline);
    return status.ok();
  }

  TempFolder folder_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<internal::v1::WorkerService::Stub> workers_;
  std::string owner_, stranger_, expired_, admin_, worker_, other_worker_;
};

// Of all that the server logs.
class LogTest : public AttackTest {
 protected:
  // Nobody logs when the default logger changes.
  void TearDown() override { server_.reset(); }
  // "method caller resource outcome" of each line of the audit log since the last time.
  std::vector<std::string> TakeAudit() {
    std::vector<std::string> calls;
    const std::vector<std::string> lines = log_.LinesWith("{\"audit\":");
    for (; audited_ < lines.size(); ++audited_) {
      const std::string& line = lines[audited_];
      const nlohmann::json call =
          nlohmann::json::parse(line.substr(line.find('{')), nullptr, /*allow_exceptions=*/false);
      EXPECT_FALSE(call.is_discarded() || call.value("peer", "").empty()) << line;
      calls.push_back(absl::StrCat(call.value("audit", ""), " ", call.value("caller", ""), " ",
                                   call.value("resource", ""), " ", call.value("outcome", "")));
    }
    return calls;
  }

  CapturedLog log_;

 private:
  size_t audited_ = 0;
};

TEST_F(AttackTest, NoMethodAnswersWithoutAGoodToken) {
  StartWithTokens();
  const std::map<std::string, Headers> attacks = {
      {"no token", {}},
      {"a wrong token", Bearer("qpruner_" + std::string(64, '0'))},
      {"an empty token", Bearer("")},
      {"an expired token", Bearer(expired_)},
      {"a token cut short", Bearer(owner_.substr(0, owner_.size() - 1))},
      {"another scheme", {{"authorization", "Basic " + owner_}}},
      {"two tokens", {{"authorization", "Bearer " + owner_}, {"authorization", "Bearer x"}}},
      {"a hash for a token", Bearer(Sha256Hex(owner_))},
      {"a token of 5 KB", Bearer(std::string(5000, 'a'))},
  };
  for (const ServiceDescriptor* service : {JobServiceMethods(), WorkerServiceMethods()}) {
    ASSERT_NE(service, nullptr);
    ASSERT_GE(service->method_count(), 6);
    for (int i = 0; i < service->method_count(); ++i) {
      const MethodDescriptor& method = *service->method(i);
      for (const auto& [what, headers] : attacks) {
        const absl::Status status = CallAny(channel_, method, *NewRequest(method), headers);
        EXPECT_TRUE(absl::IsUnauthenticated(status))
            << method.full_name() << " with " << what << ": " << status;
      }
    }
  }
  EXPECT_TRUE(Answers());
}

TEST_F(AttackTest, RolesDoNotMix) {
  StartWithTokens();
  for (int i = 0; i < JobServiceMethods()->method_count(); ++i) {
    const MethodDescriptor& method = *JobServiceMethods()->method(i);
    EXPECT_TRUE(
        absl::IsPermissionDenied(CallAny(channel_, method, *NewRequest(method), Bearer(worker_))))
        << method.full_name();
  }
  for (int i = 0; i < WorkerServiceMethods()->method_count(); ++i) {
    const MethodDescriptor& method = *WorkerServiceMethods()->method(i);
    for (const std::string& token : {owner_, admin_}) {
      EXPECT_TRUE(
          absl::IsPermissionDenied(CallAny(channel_, method, *NewRequest(method), Bearer(token))))
          << method.full_name();
    }
  }
}

TEST_F(AttackTest, AnotherProjectsJobDoesNotExist) {
  StartWithTokens();
  const std::string job = Create(owner_);
  const std::string absent = absl::StrReplaceAll(job, {{"/jobs/", "/jobs/x"}});
  int attacked = 0;
  for (int i = 0; i < JobServiceMethods()->method_count(); ++i) {
    const MethodDescriptor& method = *JobServiceMethods()->method(i);
    const std::unique_ptr<Message> request = RequestAbout(method, job);
    if (request == nullptr) continue;
    ++attacked;
    const absl::Status foreign = CallAny(channel_, method, *request, Bearer(stranger_));
    EXPECT_TRUE(absl::IsNotFound(foreign)) << method.full_name() << ": " << foreign;
    // Not to be told from a job that is not there.
    const absl::Status missing =
        CallAny(channel_, method, *RequestAbout(method, absent), Bearer(owner_));
    EXPECT_EQ(std::string(foreign.message()),
              absl::StrReplaceAll(std::string(missing.message()), {{absent, job}}))
        << method.full_name();
  }
  EXPECT_EQ(attacked, 10)
      << "get, watch, pause, resume, cancel, delete, trials, front, artifacts, download";
  v1::ListJobsRequest list;
  v1::ListJobsResponse listed;
  list.set_parent("projects/default");
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed, stranger_)));
  list.set_parent("projects/other");
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed, stranger_).ok());
  EXPECT_EQ(listed.jobs_size(), 0);
  v1::CompressionJob created;
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(*jobs_, &v1::JobService::Stub::CreateJob, ScriptedRequest(), &created, stranger_)));
  v1::GetJobRequest get;
  get.set_name(job);
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::GetJob, get, &created, admin_).ok());
  EXPECT_EQ(created.state(), v1::CompressionJob::PENDING) << "nobody touched it";
}

TEST_F(AttackTest, AWorkerActsOnlyUnderItsOwnNameAndLease) {
  StartWithTokens();
  Create(owner_);
  const internal::v1::AcquireTaskResponse held = Lease();
  using Stub = internal::v1::WorkerService::Stub;
  internal::v1::RegisterWorkerRequest registration;
  registration.set_worker("w1");
  registration.set_incarnation("evil");
  internal::v1::RegisterWorkerResponse registered;
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(*workers_, &Stub::RegisterWorker, registration, &registered, other_worker_)));
  internal::v1::AcquireTaskRequest acquire;
  acquire.set_worker("w1");
  acquire.set_incarnation("a");
  internal::v1::AcquireTaskResponse acquired;
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(*workers_, &Stub::AcquireTask, acquire, &acquired, other_worker_)));

  // The lease itself has leaked.
  internal::v1::HeartbeatRequest heartbeat;
  *heartbeat.mutable_lease() = held.lease();
  internal::v1::HeartbeatResponse beat;
  EXPECT_TRUE(
      absl::IsPermissionDenied(Call(*workers_, &Stub::Heartbeat, heartbeat, &beat, other_worker_)));
  internal::v1::CompleteTaskRequest complete;
  *complete.mutable_lease() = held.lease();
  complete.mutable_error()->set_code(3);
  google::protobuf::Empty empty;
  EXPECT_TRUE(absl::IsPermissionDenied(
      Call(*workers_, &Stub::CompleteTask, complete, &empty, other_worker_)));
  for (const char* name : {"UploadArtifact", "FetchArtifact"}) {
    const MethodDescriptor& method = *WorkerServiceMethods()->FindMethodByName(name);
    const std::unique_ptr<Message> request = NewRequest(method);
    request->GetReflection()
        ->MutableMessage(request.get(), method.input_type()->FindFieldByName("lease"))
        ->CopyFrom(held.lease());
    EXPECT_TRUE(
        absl::IsPermissionDenied(CallAny(channel_, method, *request, Bearer(other_worker_))))
        << name;
  }
  EXPECT_TRUE(Call(*workers_, &Stub::Heartbeat, heartbeat, &beat, worker_).ok());
}

TEST_F(AttackTest, ALeaseThatHasEndedIsWorthNothing) {
  Start();
  Create();
  const internal::v1::AcquireTaskResponse held = Lease();
  using Stub = internal::v1::WorkerService::Stub;
  internal::v1::CompleteTaskRequest complete;
  *complete.mutable_lease() = held.lease();
  complete.mutable_error()->set_code(13);
  google::protobuf::Empty empty;
  ASSERT_TRUE(Call(*workers_, &Stub::CompleteTask, complete, &empty).ok());
  internal::v1::HeartbeatRequest heartbeat;
  *heartbeat.mutable_lease() = held.lease();
  internal::v1::HeartbeatResponse beat;
  EXPECT_TRUE(absl::IsAborted(Call(*workers_, &Stub::Heartbeat, heartbeat, &beat)));
  const MethodDescriptor& upload = *WorkerServiceMethods()->FindMethodByName("UploadArtifact");
  internal::v1::UploadArtifactRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_ref() = ArtifactOf("model/x", "x");
  request.set_data("x");
  EXPECT_TRUE(absl::IsAborted(CallAny(channel_, upload, request, {})));
}

TEST_F(AttackTest, UploadsStayInTheirJob) {
  Start();
  Create();
  const internal::v1::AcquireTaskResponse held = Lease();
  const MethodDescriptor& upload = *WorkerServiceMethods()->FindMethodByName("UploadArtifact");
  for (const char* path : {"../evil", "/etc/evil", "a/../../evil", "a//b", ".", "a\\b", "a b"}) {
    internal::v1::UploadArtifactRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_ref() = ArtifactOf(path, "x");
    request.set_data("x");
    EXPECT_TRUE(absl::IsInvalidArgument(CallAny(channel_, upload, request, {}))) << path;
  }
  // What nobody stores is refused before it is begun.
  internal::v1::UploadArtifactRequest huge;
  *huge.mutable_lease() = held.lease();
  *huge.mutable_ref() = ArtifactOf("model/x", "x");
  huge.mutable_ref()->set_size_bytes(int64_t{1} << 60);
  const absl::Status refused = CallAny(channel_, upload, huge, {});
  ASSERT_EQ(FieldViolations(refused).size(), 1u) << refused;
  EXPECT_EQ(FieldViolations(refused)[0].field, "ref.size_bytes");
  // Content that is not what its hash says is not kept.
  internal::v1::UploadArtifactRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_ref() = ArtifactOf("model/x", "good");
  request.set_data("evil");
  EXPECT_FALSE(CallAny(channel_, upload, request, {}).ok());
}

TEST_F(AttackTest, MetacharactersAreOnlyText) {
  Start();
  const std::string evil = "'; DROP TABLE jobs; -- $(reboot) `id` %s \" \\ {{x}} <script>";
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->set_display_name(evil);
  (*request.mutable_job()->mutable_labels())["team"] = "';--$(id)";
  request.set_request_id(evil.substr(0, 40));
  v1::CompressionJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::CreateJob, request, &job).ok());
  v1::GetJobRequest get;
  get.set_name(job.name());
  v1::CompressionJob found;
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::GetJob, get, &found).ok());
  EXPECT_EQ(found.display_name(), evil);
  EXPECT_EQ(found.labels().at("team"), "';--$(id)");

  v1::ListJobsRequest list;
  (*list.mutable_labels())["team' OR '1'='1"] = "x' OR 'x'='x";
  v1::ListJobsResponse listed;
  const absl::Status status = Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed);
  EXPECT_EQ(listed.jobs_size(), 0) << status;
  list.Clear();
  list.set_page_token(evil);
  EXPECT_TRUE(
      absl::IsInvalidArgument(Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed)));
  for (const std::string& name :
       {"projects/default/jobs/a'; DROP TABLE jobs; --", "projects/../jobs/a",
        "projects/default/jobs/$(id)", "projects/default/jobs/a\n{\"audit\":\"DeleteJob\"}"}) {
    get.set_name(name);
    EXPECT_TRUE(absl::IsInvalidArgument(Call(*jobs_, &v1::JobService::Stub::GetJob, get, &found)))
        << name;
  }
  for (const char* uri : {"file:///models/../../etc/passwd", "file://evil.org/x", "/etc/passwd",
                          "builtin://../../etc", "file:///a\n/b", "http://evil.org/model"}) {
    request = ScriptedRequest();
    request.mutable_job()->mutable_spec()->mutable_model()->set_uri(uri);
    EXPECT_TRUE(
        absl::IsInvalidArgument(Call(*jobs_, &v1::JobService::Stub::CreateJob, request, &job)))
        << uri;
  }
}

TEST_F(LogTest, WhoDidWhatIsAuditedOnceAndNoTokenIsTold) {
  StartWithTokens();
  const std::string job = Create(owner_);
  EXPECT_THAT(TakeAudit(), ElementsAre("CreateJob owner " + job + " OK"));
  const internal::v1::AcquireTaskResponse held = Lease();
  EXPECT_THAT(TakeAudit(), ElementsAre("RegisterWorker w1-token w1 OK"));

  // A client looks at another's job.
  for (const char* name : {"WatchJob", "DownloadArtifact", "GetJob", "CancelJob"}) {
    const MethodDescriptor& method = *JobServiceMethods()->FindMethodByName(name);
    const std::string resource =
        method.name() == "DownloadArtifact" ? job + "/artifacts/model/config.json" : job;
    EXPECT_TRUE(
        absl::IsNotFound(CallAny(channel_, method, *RequestAbout(method, job), Bearer(stranger_))));
    EXPECT_THAT(TakeAudit(), ElementsAre(absl::StrCat(name, " stranger ", resource, " NOT_FOUND")));
  }
  v1::ListJobsRequest list;
  list.set_parent("projects/default");
  v1::ListJobsResponse listed;
  EXPECT_FALSE(Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed, stranger_).ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("ListJobs stranger projects/default PERMISSION_DENIED"));

  // A worker uses another's lease, or name.
  for (const char* name : {"Heartbeat", "CompleteTask", "SaveCheckpoint", "UploadArtifact",
                           "PrepareUpload", "FetchArtifact"}) {
    const MethodDescriptor& method = *WorkerServiceMethods()->FindMethodByName(name);
    const std::unique_ptr<Message> request = NewRequest(method);
    request->GetReflection()
        ->MutableMessage(request.get(), method.input_type()->FindFieldByName("lease"))
        ->CopyFrom(held.lease());
    EXPECT_TRUE(
        absl::IsPermissionDenied(CallAny(channel_, method, *request, Bearer(other_worker_))));
    EXPECT_THAT(TakeAudit(), ElementsAre(absl::StrCat(name, " w2-token ", job,
                                                      "/tasks/prepare PERMISSION_DENIED")));
  }
  internal::v1::AcquireTaskRequest acquire;
  acquire.set_worker("w1");
  internal::v1::AcquireTaskResponse acquired;
  EXPECT_FALSE(Call(*workers_, &internal::v1::WorkerService::Stub::AcquireTask, acquire, &acquired,
                    other_worker_)
                   .ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("AcquireTask w2-token w1 PERMISSION_DENIED"));

  // What comes of the work, and what its owner does with it.
  const MethodDescriptor& upload = *WorkerServiceMethods()->FindMethodByName("UploadArtifact");
  for (const std::string& path : OutputsOf(held.task())) {
    internal::v1::UploadArtifactRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_ref() = ArtifactOf(path, ContentOf(path));
    request.set_data(ContentOf(path));
    EXPECT_TRUE(CallAny(channel_, upload, request, Bearer(worker_)).ok());
  }
  internal::v1::CompleteTaskRequest complete;
  *complete.mutable_lease() = held.lease();
  *complete.mutable_result() = ScriptedResult(held.task());
  google::protobuf::Empty empty;
  ASSERT_TRUE(
      Call(*workers_, &internal::v1::WorkerService::Stub::CompleteTask, complete, &empty, worker_)
          .ok());
  EXPECT_THAT(TakeAudit(), IsEmpty()) << "the job's events tell it";
  const std::string artifact = job + "/artifacts/" + OutputsOf(held.task())[0];
  const MethodDescriptor& download = *JobServiceMethods()->FindMethodByName("DownloadArtifact");
  v1::DownloadArtifactRequest wanted;
  wanted.set_name(artifact);
  EXPECT_TRUE(CallAny(channel_, download, wanted, Bearer(owner_)).ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("DownloadArtifact owner " + artifact + " OK"));
  for (const auto& [name, outcome] : std::vector<std::pair<std::string, std::string>>{
           {"DeleteJob", "FAILED_PRECONDITION"}, {"CancelJob", "OK"}}) {
    const MethodDescriptor& method = *JobServiceMethods()->FindMethodByName(name);
    CallAny(channel_, method, *RequestAbout(method, job), Bearer(admin_)).IgnoreError();
    EXPECT_THAT(TakeAudit(), ElementsAre(absl::StrCat(name, " admin ", job, " ", outcome)));
  }
  const MethodDescriptor& remove = *JobServiceMethods()->FindMethodByName("DeleteJob");
  EXPECT_TRUE(CallAny(channel_, remove, *RequestAbout(remove, job), Bearer(owner_)).ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("DeleteJob owner " + job + " OK"));

  const std::string log = log_.text();
  ASSERT_FALSE(log.empty());
  for (const std::string& token : {owner_, stranger_, admin_, worker_, other_worker_}) {
    EXPECT_THAT(log, Not(HasSubstr(token)));
    EXPECT_THAT(log, Not(HasSubstr(Sha256Hex(token))));
  }
  EXPECT_THAT(log, Not(HasSubstr(held.lease().token())));
  EXPECT_THAT(log, Not(HasSubstr("qpruner_"))) << "how each token begins";
}

TEST_F(LogTest, WhatAWorkerSaysForgesNoLine) {
  Start();
  Create();
  const std::string forged = "{\"audit\":\"DeleteJob\",\"caller\":\"owner\"}";
  const internal::v1::AcquireTaskResponse held = Lease("cpu\ninfo " + forged);
  internal::v1::CompleteTaskRequest complete;
  *complete.mutable_lease() = held.lease();
  complete.mutable_error()->set_code(13);
  complete.mutable_error()->set_message("out\r\n\xE2\x80\xA8info " + forged);
  google::protobuf::Empty empty;
  ASSERT_TRUE(
      Call(*workers_, &internal::v1::WorkerService::Stub::CompleteTask, complete, &empty).ok());
  EXPECT_EQ(log_.LinesWith(forged).size(), 2u);
  for (const std::string& line : log_.LinesWith(forged)) {
    EXPECT_FALSE(absl::StartsWith(line, "info {")) << line;
    EXPECT_EQ(line.find_first_of("\r\n"), line.size() - 1) << line;
  }
  EXPECT_EQ(log_.LinesWith("device cpu\\ninfo {").size(), 1u);
  EXPECT_EQ(log_.LinesWith("out\\r\\n\\u2028info {").size(), 1u);
}

// Every string of every message, by the descriptors: a field that is added tomorrow is attacked,
// too. The parameter says whether the jobs are in PostgreSQL.
class HostileTextTest : public AttackTest, public testing::WithParamInterface<bool> {
 protected:
  // From a request's message down to a string.
  using FieldPath = std::vector<const FieldDescriptor*>;

  static void FindStrings(const Descriptor& message, FieldPath& at, std::vector<FieldPath>& found) {
    for (int i = 0; i < message.field_count(); ++i) {
      const FieldDescriptor* field = message.field(i);
#ifdef __SANITIZE_THREAD__
      // Protobuf's headers lay maps out otherwise for this sanitizer than the library was built
      // with, whose reflection then reads beside them.
      if (field->is_map()) continue;
#endif
      at.push_back(field);
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        found.push_back(at);
      } else if (field->message_type() != nullptr && std::count(at.begin(), at.end(), field) == 1) {
        FindStrings(*field->message_type(), at, found);
      }
      at.pop_back();
    }
  }
  // In the first of what is repeated, which is added if there is none.
  static void SetString(Message& message, absl::Span<const FieldDescriptor* const> path,
                        const std::string& text) {
    const Reflection& reflection = *message.GetReflection();
    const FieldDescriptor* field = path[0];
    const bool absent = field->is_repeated() && reflection.FieldSize(message, field) == 0;
    if (path.size() == 1 && !field->is_repeated()) {
      reflection.SetString(&message, field, text);
    } else if (path.size() == 1 && absent) {
      reflection.AddString(&message, field, text);
    } else if (path.size() == 1) {
      reflection.SetRepeatedString(&message, field, 0, text);
    } else {
      SetString(!field->is_repeated() ? *reflection.MutableMessage(&message, field)
                : absent              ? *reflection.AddMessage(&message, field)
                                      : *reflection.MutableRepeatedMessage(&message, field, 0),
                path.subspan(1), text);
    }
  }

  void StartOnStore() {
    ServerOptions options;
    if (GetParam()) {
      options.postgres = PostgresOptions{.url = url_};
      options.artifacts_dir = folder_.path() + "/artifacts";
    }
    Start(std::move(options));
  }
  void Register(const std::string& worker) {
    internal::v1::RegisterWorkerRequest request;
    request.set_worker(worker);
    request.set_incarnation("a");
    internal::v1::RegisterWorkerResponse response;
    EXPECT_TRUE(Call(*workers_, &WorkerStub::RegisterWorker, request, &response).ok());
  }
  // Of a job that is there for it, if the last one is over: results and errors end it.
  const internal::v1::AcquireTaskResponse& CurrentLease() {
    internal::v1::HeartbeatRequest heartbeat;
    *heartbeat.mutable_lease() = held_.lease();
    internal::v1::HeartbeatResponse beat;
    if (Call(*workers_, &WorkerStub::Heartbeat, heartbeat, &beat).ok()) return held_;
    Create();
    ++job_count_;
    held_ = Lease();
    const MethodDescriptor& upload = *WorkerServiceMethods()->FindMethodByName("UploadArtifact");
    for (const std::string& path : OutputsOf(held_.task())) {
      internal::v1::UploadArtifactRequest request;
      *request.mutable_lease() = held_.lease();
      *request.mutable_ref() = ArtifactOf(path, ContentOf(path));
      request.set_data(ContentOf(path));
      EXPECT_TRUE(CallAny(channel_, upload, request, {}).ok());
    }
    return held_;
  }
  // One that would be answered with OK, or nearly, so that the text comes as far as it can.
  std::unique_ptr<Message> GoodRequest(const MethodDescriptor& method) {
    if (method.name() == "CreateJob")
      return std::make_unique<v1::CreateJobRequest>(ScriptedRequest());
    if (auto about_job = RequestAbout(method, victim_)) return about_job;
    auto request = NewRequest(method);
    const Descriptor& type = *method.input_type();
    const Reflection& reflection = *request->GetReflection();
    const auto set = [&](const char* field, const Message& value) {
      const FieldDescriptor* descriptor = type.FindFieldByName(field);
      if (descriptor == nullptr) return;
      Message* to = descriptor->is_repeated()
                        ? reflection.AddMessage(request.get(), descriptor)
                        : reflection.MutableMessage(request.get(), descriptor);
      to->CopyFrom(value);
    };
    if (type.FindFieldByName("lease") != nullptr) {
      set("lease", CurrentLease().lease());
      set("ref", ArtifactOf(method.name() == "SaveCheckpoint" ? "checkpoint/x" : "model/x", "x"));
      if (held_.has_task()) set("result", ScriptedResult(held_.task()));
    }
    if (type.FindFieldByName("worker") != nullptr) {
      // Not the one that holds the lease: another process of that would end it.
      Register("w9");
      reflection.SetString(request.get(), type.FindFieldByName("worker"), "w9");
      reflection.SetString(request.get(), type.FindFieldByName("incarnation"), "a");
    }
    return request;
  }
  std::map<std::string, std::string> Jobs() {
    std::map<std::string, std::string> jobs;
    v1::ListJobsRequest request;
    request.set_page_size(500);
    v1::ListJobsResponse page;
    do {
      page.Clear();
      const absl::Status status = Call(*jobs_, &v1::JobService::Stub::ListJobs, request, &page);
      EXPECT_TRUE(status.ok()) << status;
      for (const v1::CompressionJob& job : page.jobs()) jobs[job.name()] = job.SerializeAsString();
      request.set_page_token(page.next_page_token());
    } while (!page.next_page_token().empty());
    return jobs;
  }

  using WorkerStub = internal::v1::WorkerService::Stub;
  std::string url_;
  // PAUSED: nobody works on it.
  std::string victim_;
  size_t job_count_ = 0;
  internal::v1::AcquireTaskResponse held_;
};

TEST_P(HostileTextTest, IsOnlyTextInEveryFieldOfEveryMethod) {
  if (GetParam()) {
    if (PostgresCluster::Shared() == nullptr) GTEST_SKIP() << "PostgreSQL cannot be run here";
    url_ = PostgresCluster::Shared()->NewDatabase();
  }
  StartOnStore();
  victim_ = Create();
  ++job_count_;
  const MethodDescriptor& pause = *JobServiceMethods()->FindMethodByName("PauseJob");
  ASSERT_TRUE(CallAny(channel_, pause, *RequestAbout(pause, victim_), {}).ok());
  const std::string untouched = Jobs()[victim_];

  const std::string made = folder_.path() + "/made";
  std::vector<std::string> texts = {
      "'; DROP TABLE jobs; --",
      "' OR '1'='1",
      "\\'); DELETE FROM qpruner.jobs; COMMIT; --",
      absl::StrCat("$(touch ", made, ")"),
      absl::StrCat("`touch ", made, "`"),
      absl::StrCat("; touch ", made, " | touch ", made, " & "),
      "../../etc/passwd",
      "%s%n%s%n{}{0}",
      std::string("a\0b", 3),
      "\r\ninfo {\"audit\":\"DeleteJob\"}\x1b[2J",
      "\xE2\x80\xAE\xF0\x9F\x98\x80",
      std::string(100'000, 'x'),
  };
#ifdef __SANITIZE_THREAD__
  // It looks for races, which are the same for all texts, and takes ten minutes for them.
  texts.resize(2);
#endif
  int strings = 0;
  const auto attack = [&](const MethodDescriptor& method, const std::vector<FieldPath>& paths,
                          const std::string& text) {
    const std::unique_ptr<Message> request = GoodRequest(method);
    for (const FieldPath& path : paths) SetString(*request, path, text);
    if (auto* complete = dynamic_cast<internal::v1::CompleteTaskRequest*>(request.get());
        complete != nullptr && complete->has_error()) {
      complete->mutable_error()->set_code(13);  // Or it is none.
    }
    const absl::Status status = CallAny(channel_, method, *request, {});
    // Nor is it that the refusal is too long to be sent.
    const bool sent = !absl::StrContains(status.message(), "metadata");
    EXPECT_TRUE(sent && !absl::IsInternal(status) && !absl::IsUnknown(status) &&
                !absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status))
        << method.full_name() << " with \"" << absl::CEscape(text.substr(0, 100)) << "\" as "
        << paths.back().back()->full_name() << ": " << status;
    if (method.name() == "CreateJob" && status.ok()) ++job_count_;
  };
  for (const ServiceDescriptor* service : {JobServiceMethods(), WorkerServiceMethods()}) {
    for (int i = 0; i < service->method_count(); ++i) {
      const MethodDescriptor& method = *service->method(i);
      std::vector<FieldPath> paths;
      FieldPath at;
      FindStrings(*method.input_type(), at, paths);
      strings += static_cast<int>(paths.size());
      for (const std::string& text : texts) {
        for (const FieldPath& path : paths) attack(method, {path}, text);
        if (paths.size() > 1) attack(method, paths, text);
      }
    }
  }
  EXPECT_GT(strings, 80);

  EXPECT_FALSE(std::filesystem::exists(made));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path())) {
    EXPECT_EQ(entry.path().string().find_first_of("';$`%\n\x1b"), std::string::npos)
        << entry.path();
    EXPECT_NE(entry.path().filename(), "passwd");
  }
  // All jobs are there, also for who opens the store anew, and it works.
  for (int i = 0; i < 2; ++i) {
    std::map<std::string, std::string> jobs = Jobs();
    EXPECT_EQ(jobs.size(), job_count_);
    EXPECT_EQ(jobs[victim_], untouched);
    held_.Clear();
    EXPECT_TRUE(CurrentLease().has_task());
    server_.reset();
    StartOnStore();
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, HostileTextTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Postgres" : "Sqlite"; });

TEST_F(AttackTest, OversizedMessagesAndHeadersAreRefused) {
  Start();
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->set_display_name(std::string(100 << 20, 'x'));
  v1::CompressionJob job;
  EXPECT_TRUE(
      absl::IsResourceExhausted(Call(*jobs_, &v1::JobService::Stub::CreateJob, request, &job)));
  const MethodDescriptor& method = *JobServiceMethods()->FindMethodByName("ListCapabilities");
  Headers flood;
  for (int i = 0; i < 1000; ++i) flood.emplace("x-flood", std::string(100, 'x'));
  EXPECT_FALSE(CallAny(channel_, method, *NewRequest(method), flood).ok());
  EXPECT_TRUE(Answers());
}

// A TCP connection to 127.0.0.1 at the port of `address`.
int ConnectTo(const std::string& address) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  return fd;
}

// gRPC's own listener never accepts again once the process is out of descriptors.
TEST_F(AttackTest, ConnectionsBeyondTheLimitAreClosedAndOthersGoOn) {
  ServerOptions options;
  options.max_connections = 16;
  Start(std::move(options));
  ASSERT_TRUE(Answers());  // One of the sixteen.
  std::vector<int> sockets;
  int refused = 0;
  for (int i = 0; i < 50; ++i) {
    sockets.push_back(ConnectTo(server_->address()));
    pollfd wait{.fd = sockets.back(), .events = POLLIN, .revents = 0};
    // The server's settings frame, or the end.
    ASSERT_EQ(poll(&wait, 1, 30'000), 1);
    char byte;
    refused += read(sockets.back(), &byte, 1) == 1 ? 0 : 1;
  }
  EXPECT_EQ(refused, 50 - 15);
  EXPECT_TRUE(Answers());
  for (const int fd : sockets) close(fd);
  // A stranger to the attack finds the door open again.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ =
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
  jobs_ = v1::JobService::NewStub(channel_);
  EXPECT_TRUE(Answers());
}

TEST(ConnectionsWithin, LeaveDescriptorsToTheStore) {
  EXPECT_EQ(ConnectionsWithin(10'000, 1 << 20), 10'000);
  EXPECT_EQ(ConnectionsWithin(10'000, 4096), 3072);
  EXPECT_EQ(ConnectionsWithin(10'000, 1024), 512);
  EXPECT_EQ(ConnectionsWithin(100, 1024), 100);
}

TEST_F(AttackTest, SilentConnectionsDoNotStopTheServer) {
  Start();
  std::vector<int> sockets;
  for (int i = 0; i < 300; ++i) {
    const int fd = ConnectTo(server_->address());
    // Some begin a handshake that never goes on, or speak another language.
    if (i % 3 == 1) EXPECT_EQ(write(fd, "PRI * HTTP/2", 12), 12);
    if (i % 3 == 2) EXPECT_EQ(write(fd, "\x16\x03\x01\x02garbage", 11), 11);
    sockets.push_back(fd);
  }
  EXPECT_TRUE(Answers());
  EXPECT_FALSE(Create().empty());
  for (const int fd : sockets) close(fd);
}

TEST_F(AttackTest, UploadsThatSendNothingAreBoundedAndEnded) {
  SimulatedClock clock;
  Start({}, clock);
  struct Upload {
    grpc::ClientContext context;
    google::protobuf::Empty response;
    std::unique_ptr<grpc::ClientWriter<internal::v1::UploadArtifactRequest>> stream;
  };
  std::vector<std::unique_ptr<Upload>> uploads;
  for (int i = 0; i < 200; ++i) {
    uploads.push_back(std::make_unique<Upload>());
    Upload& upload = *uploads.back();
    upload.stream = workers_->UploadArtifact(&upload.context, &upload.response);
  }
  absl::Mutex mutex;
  absl::CondVar changed;
  int refused = 0, ended = 0;
  std::vector<std::thread> watchers;
  for (const auto& upload : uploads) {
    watchers.emplace_back([&, stream = upload->stream.get()] {
      const absl::Status status = FromGrpcStatus(stream->Finish());
      absl::MutexLock lock(&mutex);
      if (ErrorReason(status) == "TOO_MANY_TRANSFERS") {
        EXPECT_TRUE(RetryDelay(status)) << status;
        ++refused;
      } else {
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        ++ended;
      }
      changed.Signal();
    });
  }
  {
    absl::MutexLock lock(&mutex);
    while (refused < 200 - 128) changed.Wait(&mutex);
    EXPECT_EQ(ended, 0);
  }
  // The others hold threads, but not all.
  EXPECT_TRUE(Answers());
  EXPECT_FALSE(Create().empty());
  {
    absl::MutexLock lock(&mutex);
    while (ended < 128) {
      clock.Advance(absl::Seconds(61));
      // Whoever had not begun to wait does by then.
      changed.WaitWithTimeout(&mutex, absl::Seconds(10));
    }
  }
  for (std::thread& watcher : watchers) watcher.join();
  EXPECT_EQ(refused, 200 - 128);
}

class TlsTest : public AttackTest {
 protected:
  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = folder_.path() + "/" + name;
    EXPECT_TRUE(WriteFileDurably(path, content, 0600).ok());
    return path;
  }
  ServerOptions TlsOptions(const PemPair& certificate) {
    ServerOptions options;
    options.tls.certificate = Write("server.pem", certificate.certificate);
    options.tls.key = Write("server.key", certificate.key);
    return options;
  }
  // A call over a connection of its own.
  absl::Status Try(const ChannelSecurity& security) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = OpenSecureChannel(server_->address(), security, arguments);
    if (!channel.ok()) return channel.status();
    const auto stub = v1::JobService::NewStub(*channel);
    v1::ListCapabilitiesResponse response;
    return Call(*stub, &v1::JobService::Stub::ListCapabilities, v1::ListCapabilitiesRequest(),
                &response);
  }

  const PemPair authority_ = MakeTestAuthority("test authority");
  const PemPair foreign_ = MakeTestAuthority("foreign authority");
};

TEST_F(TlsTest, OnlyItsAuthorityOpensTheDoor) {
  Start(TlsOptions(MakeTestCertificate("server", authority_)));
  const std::string ca = Write("ca.pem", authority_.certificate);
  EXPECT_TRUE(Try({.ca = ca}).ok());
  EXPECT_TRUE(absl::IsUnavailable(Try({}))) << "plain text";
  EXPECT_TRUE(absl::IsUnavailable(Try({.ca = Write("foreign.pem", foreign_.certificate)})));
}

TEST_F(TlsTest, MutualTlsAsksForACertificateOfTheClientAuthority) {
  ServerOptions options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.client_ca = Write("client-ca.pem", authority_.certificate);
  Start(std::move(options));
  const std::string ca = Write("ca.pem", authority_.certificate);
  const PemPair good = MakeTestCertificate("client", authority_);
  const PemPair bad = MakeTestCertificate("client", foreign_);
  EXPECT_TRUE(Try({.ca = ca,
                   .certificate = Write("good.pem", good.certificate),
                   .key = Write("good.key", good.key)})
                  .ok());
  EXPECT_FALSE(Try({.ca = ca}).ok());
  EXPECT_FALSE(Try({.ca = ca,
                    .certificate = Write("bad.pem", bad.certificate),
                    .key = Write("bad.key", bad.key)})
                   .ok());
}

TEST_F(TlsTest, ARenewedCertificateIsTakenUp) {
  Start(TlsOptions(MakeTestCertificate("server", authority_)));
  const ChannelSecurity renewed{.ca = Write("renewed-ca.pem", foreign_.certificate)};
  ASSERT_FALSE(Try(renewed).ok());
  const PemPair next = MakeTestCertificate("server", foreign_);
  Write("server.key", next.key);
  Write("server.pem", next.certificate);
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!Try(renewed).ok()) ASSERT_LT(absl::Now(), deadline) << "it was not read again";
}

TEST_F(TlsTest, AClientsRenewedCertificateIsTakenUp) {
  ServerOptions options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.client_ca = Write("client-ca.pem", authority_.certificate);
  Start(std::move(options));
  const auto write_identity = [&](const PemPair& pair) {
    return ChannelSecurity{.ca = Write("ca.pem", authority_.certificate),
                           .certificate = Write("client.pem", pair.certificate),
                           .key = Write("client.key", pair.key)};
  };
  // One channel all the time, as a worker has it.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  const auto channel = OpenSecureChannel(
      server_->address(), write_identity(MakeTestCertificate("client", foreign_)), arguments);
  ASSERT_TRUE(channel.ok()) << channel.status();
  const auto stub = v1::JobService::NewStub(*channel);
  const auto list = [&] {
    v1::ListCapabilitiesResponse response;
    return Call(*stub, &v1::JobService::Stub::ListCapabilities, v1::ListCapabilitiesRequest(),
                &response);
  };
  ASSERT_FALSE(list().ok()) << "another authority's";
  write_identity(MakeTestCertificate("client", authority_));
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!list().ok()) ASSERT_LT(absl::Now(), deadline) << "it was not read again";
}

TEST_F(TlsTest, AClientsBadFilesAreNamed) {
  const std::string ca = Write("ca.pem", authority_.certificate);
  const PemPair good = MakeTestCertificate("client", authority_);
  const std::string certificate = Write("client.pem", good.certificate);
  const auto refusal = [](const ChannelSecurity& security) {
    const absl::Status status = OpenSecureChannel("127.0.0.1:1", security, {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal({.ca = Write("x", "no certificate")}), HasSubstr("--tls-ca"));
  EXPECT_THAT(refusal({.ca = ca, .certificate = certificate}), HasSubstr("go together"));
  EXPECT_THAT(refusal({.ca = ca, .certificate = certificate, .key = certificate}),
              HasSubstr("--tls-key"));
  EXPECT_THAT(refusal({.ca = ca, .certificate = folder_.path() + "/absent", .key = certificate}),
              HasSubstr("--tls-cert"));
}

TEST_F(TlsTest, BadFilesAreNamedAtTheStart) {
  const auto refusal = [&](const ServerOptions& options) {
    ServerOptions full = options;
    full.listen = "127.0.0.1:0";
    full.data_dir = folder_.path() + "/data";
    full.metrics_listen = "off";
    return std::string(
        Server::Start(std::move(full), RealClock(), SystemIdGenerator()).status().message());
  };
  ServerOptions options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.key = Write("other.key", MakeTestCertificate("x", authority_).key);
  EXPECT_THAT(refusal(options), HasSubstr("--tls-key"));
  options.tls.key = "";
  EXPECT_THAT(refusal(options), HasSubstr("--tls-cert and --tls-key go together"));
  options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.client_ca = Write("empty.pem", "");
  EXPECT_THAT(refusal(options), HasSubstr("--tls-client-ca"));
  options = {};
  options.token_file = folder_.path() + "/absent.json";
  EXPECT_THAT(refusal(options), HasSubstr("absent.json"));
  options.token_file = Write("tokens.json", "{}");
  ASSERT_EQ(chmod(options.token_file.c_str(), 0666), 0);
  EXPECT_THAT(refusal(options), HasSubstr("others than its owner may write it"));
}

TEST_F(AttackTest, ATokenTakenOutOfTheFileIsRefusedWithinSeconds) {
  StartWithTokens();
  ASSERT_TRUE(Answers());
  ASSERT_TRUE(WriteFileDurably(TokenPath(), "{}", 0600).ok());
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (Answers()) ASSERT_LT(absl::Now(), deadline) << "the file was not read again";
  // A broken file changes nothing.
  ASSERT_TRUE(WriteFileDurably(TokenPath(), "{", 0600).ok());
  EXPECT_FALSE(Answers());
}

TEST_F(AttackTest, AStreamEndsWithItsToken) {
  StartWithTokens();
  v1::WatchJobRequest watch;
  watch.set_name(Create(owner_));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  context.AddMetadata("authorization", "Bearer " + owner_);
  const auto stream = jobs_->WatchJob(&context, watch);
  v1::JobEvent event;
  ASSERT_TRUE(stream->Read(&event));
  // The owner's token is gone, the administrator's still there.
  const std::string fewer = folder_.path() + "/fewer.json";
  const std::string token =
      *AddNewToken({.file = fewer, .id = "admin", .role = "admin"}, SystemIdGenerator());
  std::filesystem::rename(fewer, TokenPath());
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (Answers()) ASSERT_LT(absl::Now(), deadline) << "the file was not read again";
  v1::CancelJobRequest cancel;
  cancel.set_name(watch.name());
  v1::CompressionJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::CancelJob, cancel, &job, token).ok());
  EXPECT_FALSE(stream->Read(&event)) << event.ShortDebugString();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(AttackTest, ListsAskOnlyForLabelsThatAJobCanHave) {
  Start();
  v1::ListJobsRequest request;
  v1::ListJobsResponse response;
  (*request.mutable_labels())["a"] = std::string("\0", 1);
  const absl::Status status = Call(*jobs_, &v1::JobService::Stub::ListJobs, request, &response);
  ASSERT_EQ(FieldViolations(status).size(), 1u) << status;
  EXPECT_EQ(FieldViolations(status)[0].field, "labels[a]");
}

TEST_F(AttackTest, AClientDoesNotSendItsTokenInTheClear) {
  const std::string token = folder_.path() + "/token";
  ASSERT_TRUE(WriteFileDurably(token, "qpruner_x\n", 0600).ok());
  const ChannelSecurity security{.token_file = token};
  EXPECT_TRUE(
      absl::IsInvalidArgument(OpenSecureChannel("server.example.org:7421", security, {}).status()));
  EXPECT_TRUE(OpenSecureChannel("127.0.0.1:7421", security, {}).ok());
  EXPECT_TRUE(OpenSecureChannel("unix:/tmp/x", security, {}).ok());
  EXPECT_TRUE(OpenSecureChannel("server:7421", {.token_file = token, .insecure = true}, {}).ok());
}

}  // namespace
}  // namespace qpruner::server
