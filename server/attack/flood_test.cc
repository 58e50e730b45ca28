// Too much of everything: messages, headers, connections, streams, calls that do not end.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "proto/status_codec.h"
#include "server/attack/attack_test.h"
#include "server/rpc/connection_acceptor.h"
#include "server/testing/unfinished_calls.h"
#include "tests/testing/loopback_connection.h"
#include "tests/testing/process_usage.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using google::protobuf::MethodDescriptor;

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

// gRPC's own listener never accepts again once the process is out of descriptors.
TEST_F(AttackTest, ConnectionsBeyondTheLimitAreClosedAndOthersGoOn) {
  ServerOptions options;
  options.max_connections = 16;
  Start(std::move(options));
  ASSERT_TRUE(Answers());  // One of the sixteen.
  std::vector<int> sockets;
  int refused = 0;
  for (int i = 0; i < 50; ++i) {
    sockets.push_back(ConnectToLoopback(server_->address()));
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
  channel_ = OpenOwnChannel().value();
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
    const int fd = ConnectToLoopback(server_->address());
    // Some begin a handshake that never goes on, or speak another language.
    const std::string said = i % 3 == 0   ? ""
                             : i % 3 == 1 ? "PRI * HTTP/2"
                                          : "\x16\x03\x01\x02garbage";
    EXPECT_EQ(write(fd, said.data(), said.size()), static_cast<ssize_t>(said.size()));
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

// A watch that is opened and then neither read nor ended.
class UnreadWatch final : public grpc::ClientReadReactor<v1::JobEvent> {
 public:
  UnreadWatch(v1::JobService::Stub& stub, const v1::WatchJobRequest& request) {
    stub.async()->WatchJob(&context_, &request, this);
    StartRead(&event_);
    StartCall();
  }
  ~UnreadWatch() override {
    context_.TryCancel();
    done_.WaitForNotification();
  }
  // Waits for the first event, or for the end that came in its place.
  absl::Status Outcome() {
    first_.WaitForNotification();
    if (read_) return absl::OkStatus();
    done_.WaitForNotification();
    return FromGrpcStatus(status_);
  }

 private:
  void OnReadDone(bool ok) override {
    read_ = ok;
    first_.Notify();
  }
  void OnDone(const grpc::Status& status) override {
    status_ = status;
    done_.Notify();
  }

  grpc::ClientContext context_;
  v1::JobEvent event_;
  bool read_ = false;
  grpc::Status status_;
  absl::Notification first_, done_;
};

TEST_F(AttackTest, WatchesOfAProjectAreBounded) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP()
      << "thousands of streams end on gRPC's threads, whose order the sanitizer does not see: "
         "suppressed reports take minutes, and what they would show is suppressed";
#endif
  Start();
  v1::WatchJobRequest request;
  request.set_name(Create());
  // Two connections: one may have 4,096 calls, as many as a project may have watches.
  const auto stub = v1::JobService::NewStub(OpenOwnChannel().value());
  std::vector<std::unique_ptr<UnreadWatch>> watches;
  for (int i = 0; i < 4096; ++i) {
    watches.push_back(std::make_unique<UnreadWatch>(i % 2 == 0 ? *stub : *jobs_, request));
  }
  for (const auto& watch : watches) ASSERT_TRUE(watch->Outcome().ok()) << watch->Outcome();
  const absl::Status refused = UnreadWatch(*stub, request).Outcome();
  EXPECT_EQ(ErrorReason(refused), "TOO_MANY_WATCHES") << refused;
  EXPECT_TRUE(RetryDelay(refused)) << refused;
  EXPECT_TRUE(Answers());
  // A place that is given up is another's.
  watches.pop_back();
  absl::Status again;
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  do {
    again = UnreadWatch(*stub, request).Outcome();
  } while (!again.ok() && absl::Now() < deadline);
  EXPECT_TRUE(again.ok()) << again;
}

// gRPC asks for a token only once a request is whole, so what is begun must be bounded before:
// 4 GiB here, which the server's buffers would grow to.
TEST_F(AttackTest, UnfinishedRequestsHoldABoundedMemory) {
  Start();
  ASSERT_TRUE(Answers());
  const int64_t before = ResidentBytes(getpid());
  std::vector<std::unique_ptr<UnfinishedCalls>> attackers;
  for (int i = 0; i < 32; ++i) {
    attackers.push_back(std::make_unique<UnfinishedCalls>(server_->address()));
    for (int call = 0; call < 8; ++call) {
      attackers.back()->Begin("/qpruner.v1.JobService/CreateJob", 16 << 20);
    }
  }
  int64_t peak = before;
  // Until the server has taken nothing more for a second.
  for (int still = 0; still < 100;) {
    bool moved = false;
    for (const auto& attacker : attackers) moved |= attacker->Go(absl::ZeroDuration());
    if (!moved) moved = attackers.front()->Go(absl::Milliseconds(10));
    still = moved ? 0 : still + 1;
    peak = std::max(peak, ResidentBytes(getpid()));
  }
  // An honest caller on another connection, while they hold what they have.
  EXPECT_TRUE(Answers());
  int64_t sent = 0;
  int ended = 0;
  for (const auto& attacker : attackers) {
    sent += attacker->sent_bytes();
    ended += attacker->ended_calls();
  }
  printf("%ld MiB sent, memory grew by %ld MiB at most, %d of 256 calls were ended\n", sent >> 20,
         (peak - before) >> 20, ended);
  // Or nothing was attacked.
  EXPECT_GT(sent, int64_t{1} << 30);
  EXPECT_GT(ended, 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // Their shadows count.
  EXPECT_LT(peak - before, int64_t{1} << 30);
#endif
  attackers.clear();
  EXPECT_TRUE(Answers());
  EXPECT_FALSE(Create().empty());
}

}  // namespace
}  // namespace qpruner::server
