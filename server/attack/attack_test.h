// Calls of any method with any message, by the services' descriptors, so that what is added
// tomorrow is attacked, too; and the server that they go to.
#ifndef QPRUNER_SERVER_ATTACK_ATTACK_TEST_H_
#define QPRUNER_SERVER_ATTACK_ATTACK_TEST_H_

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/synchronization/notification.h"
#include "google/protobuf/dynamic_message.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "proto/channel_security.h"
#include "proto/grpc_status.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/auth/token_table.h"
#include "server/server.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/temp_folder.h"

namespace qpruner::server {

inline const google::protobuf::ServiceDescriptor* JobServiceMethods() {
  return v1::CreateJobRequest::descriptor()->file()->FindServiceByName("JobService");
}
inline const google::protobuf::ServiceDescriptor* WorkerServiceMethods() {
  return internal::v1::AcquireTaskRequest::descriptor()->file()->FindServiceByName("WorkerService");
}

using Headers = std::multimap<std::string, std::string>;
inline Headers Bearer(const std::string& token) { return {{"authorization", "Bearer " + token}}; }

// Any method with any message, so that a method that is added tomorrow is attacked, too.
inline absl::Status CallAny(const std::shared_ptr<grpc::Channel>& channel,
                            const google::protobuf::MethodDescriptor& method,
                            const google::protobuf::Message& request, const Headers& headers) {
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

inline std::unique_ptr<google::protobuf::Message> NewRequest(
    const google::protobuf::MethodDescriptor& method) {
  return std::unique_ptr<google::protobuf::Message>(
      google::protobuf::MessageFactory::generated_factory()
          ->GetPrototype(method.input_type())
          ->New());
}

// The request of a method about one job; null for the others.
inline std::unique_ptr<google::protobuf::Message> RequestAbout(
    const google::protobuf::MethodDescriptor& method, const std::string& job) {
  if (method.name() == "CreateJob" || method.name() == "ListJobs") return nullptr;
  for (const char* field : {"name", "parent"}) {
    const google::protobuf::FieldDescriptor* found = method.input_type()->FindFieldByName(field);
    if (found == nullptr) continue;
    auto request = NewRequest(method);
    request->GetReflection()->SetString(
        request.get(), found,
        method.name() == "DownloadArtifact" ? job + "/artifacts/model/config.json" : job);
    return request;
  }
  return nullptr;
}

// Names `lease` in a request of any method that has the field.
inline void SetLease(google::protobuf::Message& request, const internal::v1::Lease& lease) {
  request.GetReflection()
      ->MutableMessage(&request, request.GetDescriptor()->FindFieldByName("lease"))
      ->CopyFrom(lease);
}

// A server on loopback, and who may talk to it once there are tokens.
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
  // Over a connection of its own, not the one that other channels to this server share.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenOwnChannel(
      const ChannelSecurity& security = {}) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return OpenSecureChannel(server_->address(), security, arguments);
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

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ATTACK_ATTACK_TEST_H_
