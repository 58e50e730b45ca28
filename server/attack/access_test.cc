// What strangers, and bearers of the wrong token or lease, can do to a server: nothing. The threats
// are listed in docs/security.md, each with its test.
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_replace.h"
#include "base/durable_file.h"
#include "proto/status_codec.h"
#include "server/attack/attack_test.h"

namespace qpruner::server {
namespace {

using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

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
    SetLease(*request, held.lease());
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
