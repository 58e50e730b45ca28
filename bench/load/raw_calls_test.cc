#include "bench/load/raw_calls.h"

#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "tests/testing/temp_folder.h"

namespace qpruner::load {
namespace {

constexpr char kGetJob[] = "/qpruner.v1.JobService/GetJob";

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// GetJob answers a job of the name that was asked for; other methods fail.
class NamingService final : public v1::JobService::Service {
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                      v1::CompressionJob* job) override {
    job->set_name(request->name());
    return grpc::Status::OK;
  }
};

class RawCallsTest : public testing::Test {
 protected:
  RawCallsTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }

  RawLoad Load(const std::string& method, int request_count) const {
    RawLoad load;
    load.address = absl::StrCat("127.0.0.1:", port_);
    load.method = method;
    load.callers = 8;
    load.channels = 2;
    for (int i = 0; i < request_count; ++i) {
      v1::GetJobRequest request;
      request.set_name(absl::StrCat("job ", i));
      load.requests.push_back(request.SerializeAsString());
    }
    return load;
  }

  TempFolder folder_;
  NamingService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(RawCallsTest, SendsTheRequestsInTurnAndKeepsEachReplyWithItsRequest) {
  auto calls = RawCalls::Connect(Load(kGetJob, 5));
  ASSERT_TRUE(calls.ok()) << calls.status();
  const CallStats stats = (*calls)->Run(absl::Milliseconds(100));
  EXPECT_EQ(stats.failure_count, 0) << stats.first_failure;
  ASSERT_GE(stats.milliseconds.size(), 8u);
  const std::vector<std::string> exchanges = (*calls)->Exchanges();
  ASSERT_THAT(exchanges, SizeIs(2 * stats.milliseconds.size()));
  std::set<std::string> names;
  for (size_t i = 0; i < exchanges.size(); i += 2) {
    v1::GetJobRequest request;
    v1::CompressionJob job;
    ASSERT_TRUE(request.ParseFromString(exchanges[i]) && job.ParseFromString(exchanges[i + 1]));
    EXPECT_EQ(request.name(), job.name());
    names.insert(job.name());
  }
  EXPECT_THAT(names, ElementsAre("job 0", "job 1", "job 2", "job 3", "job 4"));
}

TEST_F(RawCallsTest, KeepsNoMoreRepliesOfACallerThanItMay) {
  RawLoad load = Load(kGetJob, 1);
  load.kept_replies = 1;
  auto calls = RawCalls::Connect(load);
  ASSERT_TRUE(calls.ok()) << calls.status();
  (*calls)->Run(absl::Milliseconds(50));
  (*calls)->Run(absl::Milliseconds(50));
  EXPECT_THAT((*calls)->Exchanges(), SizeIs(2 * 8));
}

TEST_F(RawCallsTest, FailuresAreCountedAndAreNoReplies) {
  auto calls = RawCalls::Connect(Load("/qpruner.v1.JobService/CancelJob", 1));
  ASSERT_TRUE(calls.ok()) << calls.status();
  const CallStats stats = (*calls)->Run(absl::Milliseconds(50));
  EXPECT_THAT(stats.milliseconds, IsEmpty());
  EXPECT_GE(stats.failure_count, 8);
  // UNIMPLEMENTED.
  EXPECT_THAT(stats.first_failure, HasSubstr("12: "));
  EXPECT_THAT((*calls)->Exchanges(), IsEmpty());
}

TEST_F(RawCallsTest, NothingToSendOrNobodyThereIsAnError) {
  EXPECT_EQ(RawCalls::Connect(Load(kGetJob, 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
  server_->Shutdown();
  EXPECT_EQ(RawCalls::Connect(Load(kGetJob, 1), absl::Milliseconds(200)).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(RawCallsTest, MessagesOfAFile) {
  const std::string path = folder_.path() + "/messages";
  const std::vector<std::string> messages = {"one", "", std::string(70'000, 'x')};
  ASSERT_TRUE(WriteMessages(path, messages).ok());
  const auto read = ReadMessages(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, messages);
  EXPECT_EQ(ReadMessages(folder_.path() + "/none").status().code(), absl::StatusCode::kNotFound);
  std::ofstream(path, std::ios::app) << "\x05" << std::string(3, '\0') << "four";
  EXPECT_EQ(ReadMessages(path).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace qpruner::load
