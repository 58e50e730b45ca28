#include "server/rpc/watch_stream.h"

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using ::testing::HasSubstr;

// More than the buffers between a server and a client that does not read can take.
constexpr int64_t kEventCount = 64;
constexpr size_t kEventBytes = 256 << 10;

// A server of WatchJob alone; its one job has kEventCount large events.
class WatchService final
    : public v1::JobService::WithCallbackMethod_WatchJob<v1::JobService::Service> {
 public:
  WatchService(EventReads& reads, WatchHub& hub, PeerWatchdog& peers)
      : reads_(reads), hub_(hub), peers_(peers) {}
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext* context,
                                                   const v1::WatchJobRequest* request) override {
    return StartWatchStream(
        *context, *request, reads_, hub_, peers_, [] { return absl::OkStatus(); }, nullptr);
  }

 private:
  EventReads& reads_;
  WatchHub& hub_;
  PeerWatchdog& peers_;
};

EventBatch ReadEvents(const JobName&, int64_t after_sequence) {
  EventBatch batch;
  const int64_t last = std::min(after_sequence + 16, kEventCount);
  for (int64_t sequence = after_sequence + 1; sequence <= last; ++sequence) {
    v1::JobEvent& event = batch.events.emplace_back();
    event.set_sequence(sequence);
    event.mutable_log()->set_text(std::string(kEventBytes, 'x'));
  }
  batch.is_full = last < kEventCount;
  batch.at_end = !batch.is_full;
  return batch;
}

TEST(WatchStream, AWatcherThatDoesNotReadIsDroppedAndMayResume) {
  SimulatedClock clock;
  WatchHub hub;
  EventReads reads(ReadEvents, /*thread_count=*/1);
  PeerWatchdog peers(clock, absl::Seconds(60), absl::InfiniteDuration());
  WatchService service(reads, hub, peers);
  int port = 0;
  const std::unique_ptr<grpc::Server> server =
      grpc::ServerBuilder()
          .AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port)
          .RegisterService(&service)
          .BuildAndStart();
  // The window of a stream stays at 64 KiB: little is on the way before the server has to wait.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto stub = v1::JobService::NewStub(grpc::CreateCustomChannel(
      absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(), arguments));
  v1::WatchJobRequest request;
  request.set_name("projects/p/jobs/j");
  int64_t last = 0;
  v1::JobEvent event;
  {
    grpc::ClientContext context;
    const auto stream = stub->WatchJob(&context, request);
    ASSERT_TRUE(stream->Read(&event));
    EXPECT_EQ(event.sequence(), 1);
    // Nothing is read any more; the server drops the watch whatever it has still to send.
    while (hub.watcher_count() > 0) {
      clock.Advance(absl::Seconds(61));
      peers.Look();
    }
    for (last = 1; stream->Read(&event); ++last) EXPECT_EQ(event.sequence(), last + 1);
    EXPECT_LT(last, kEventCount);
    const absl::Status dropped = FromGrpcStatus(stream->Finish());
    EXPECT_TRUE(absl::IsUnavailable(dropped)) << dropped;
    EXPECT_THAT(std::string(dropped.message()), HasSubstr("WATCHER_TOO_SLOW"));
    EXPECT_THAT(std::string(dropped.message()), HasSubstr("watch again after sequence"));
  }
  grpc::ClientContext context;
  request.set_after_sequence(last);
  const auto stream = stub->WatchJob(&context, request);
  for (; stream->Read(&event); ++last) EXPECT_EQ(event.sequence(), last + 1);
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(last, kEventCount);
  server->Shutdown();
}

}  // namespace
}  // namespace qpruner::server
