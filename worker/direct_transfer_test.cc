#include "worker/direct_transfer.h"

#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/testing/scripted_http_server.h"
#include "tests/testing/simulated_clock.h"
#include "tests/testing/temp_folder.h"
#include "worker/testing/fake_worker_server.h"

namespace qpruner::worker {
namespace {

using Request = ScriptedHttpServer::Request;
using Reply = ScriptedHttpServer::Reply;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

// A server that gives URLs of a storage.
class DirectTransferTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.GiveUrls(storage_.url());
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_)));
  }
  void TearDown() override { spdlog::set_default_logger(logger_before_); }

  // The bytes behind the first `offset`.
  absl::Status Fetch(size_t offset = 0) {
    got_ = content_.substr(0, offset);
    return FetchDirectly(urls_, server_.stub(), {}, ref_.sha256(), static_cast<int64_t>(offset),
                         [this](absl::string_view data) {
                           got_.append(data.data(), data.size());
                           return sunk_;
                         },
                         {});
  }

  absl::Status Upload() {
    std::ofstream(path_) << content_;
    return UploadDirectly(upload_urls_, server_.stub(), {}, ref_, path_, {});
  }

  // Large enough for a URL, and no larger: the fake sends bytes in small pieces.
  const std::string content_ = std::string((1 << 20) + 1000, 'x');
  std::function<Reply(const Request&)> answer_ = [this](const Request& request) {
    return ScriptedHttpServer::RestOf(content_, request);
  };
  ScriptedHttpServer storage_{[this](const Request& request) { return answer_(request); }};
  FakeWorkerServer server_;
  const internal::v1::ArtifactRef ref_ = server_.Store("a", content_);
  SimulatedClock clock_;
  SignedUrlTransfer urls_{clock_};
  SignedUrlTransfer upload_urls_{clock_};
  TempFolder folder_;
  const std::string path_ = folder_.path() + "/output";
  const std::shared_ptr<spdlog::logger> logger_before_ = spdlog::default_logger();
  std::ostringstream log_;
  std::string got_;
  absl::Status sunk_;
};

TEST_F(DirectTransferTest, BytesComeFromTheStorage) {
  ASSERT_TRUE(Fetch(1000).ok());
  EXPECT_EQ(got_, content_);
  EXPECT_THAT(storage_.log(), ElementsAre("GET /" + ref_.sha256() + "?signature=s3cr3t"));
  EXPECT_THAT(server_.fetch_offsets(), ElementsAre(1000));
}

TEST_F(DirectTransferTest, ATransferThatBreaksOffGoesOnWithAnotherUrl) {
  answer_ = [this](const Request& request) {
    Reply reply = ScriptedHttpServer::RestOf(content_, request);
    if (reply.body.size() == content_.size()) {
      reply.cut_after = 1 << 20;
      reply.then = Reply::Then::kClose;
    }
    return reply;
  };
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(got_, content_);
  EXPECT_THAT(server_.fetch_offsets(), ElementsAre(0, 1 << 20));
  EXPECT_THAT(log_.str(), HasSubstr("another URL"));
  EXPECT_THAT(log_.str(), Not(HasSubstr("s3cr3t")));
}

TEST_F(DirectTransferTest, WhatTheStorageRefusesComesThroughTheServer) {
  answer_ = [](const Request& request) {
    return Reply{.status = 403, .body = "<Error>" + request.target + "</Error>"};
  };
  ASSERT_TRUE(Fetch(7).ok());
  EXPECT_EQ(got_, content_);
  EXPECT_THAT(server_.fetch_offsets(), ElementsAre(7, 7));
  EXPECT_THAT(log_.str(), HasSubstr("through the server"));
  EXPECT_THAT(log_.str(), Not(HasSubstr("s3cr3t")));
  // Nor is it asked for the next file.
  ASSERT_TRUE(Fetch().ok());
  EXPECT_THAT(storage_.log(), SizeIs(1));
}

TEST_F(DirectTransferTest, AStorageThatCannotBeReachedCostsNothingButTime) {
  server_.GiveUrls("http://127.0.0.1:1");
  ASSERT_TRUE(Fetch().ok());
  EXPECT_EQ(got_, content_);
  EXPECT_THAT(log_.str(), Not(HasSubstr("s3cr3t")));
}

TEST_F(DirectTransferTest, AFileIsStoredInTheStorage) {
  Request seen;
  answer_ = [&](const Request& request) {
    seen = request;
    return Reply{};
  };
  ASSERT_TRUE(Upload().ok());
  EXPECT_EQ(seen.method, "PUT");
  EXPECT_EQ(seen.body, content_);
  EXPECT_EQ(seen.headers["x-checksum"], ref_.sha256());
  EXPECT_EQ(seen.headers["content-length"], std::to_string(content_.size()));
  EXPECT_EQ(server_.calls("UploadArtifact"), 0);
}

TEST_F(DirectTransferTest, WhatTheStorageDoesNotTakeGoesThroughTheServer) {
  answer_ = [](const Request& request) {
    return Reply{.status = 400, .body = "<Error>" + request.target + "</Error>"};
  };
  ASSERT_TRUE(Upload().ok());
  EXPECT_EQ(server_.uploads().at("a"), content_);
  EXPECT_THAT(log_.str(), HasSubstr("through the server"));
  EXPECT_THAT(log_.str(), Not(HasSubstr("s3cr3t")));
  // Nor is it asked for the next file, while fetches go on.
  ASSERT_TRUE(Upload().ok());
  EXPECT_THAT(storage_.log(), SizeIs(1));
  EXPECT_TRUE(urls_.usable());
}

TEST_F(DirectTransferTest, AnOldServerGetsTheFileItself) {
  server_.FailNext("PrepareUpload", {grpc::StatusCode::UNIMPLEMENTED});
  ASSERT_TRUE(Upload().ok());
  EXPECT_EQ(server_.uploads().at("a"), content_);
}

TEST_F(DirectTransferTest, AnUploadThatWasCutOffGoesOnWhereItStopped) {
  server_.GiveUrls("");
  server_.CutNextUpload();
  EXPECT_TRUE(absl::IsUnavailable(Upload()));
  ASSERT_TRUE(Upload().ok());
  EXPECT_THAT(server_.upload_offsets(), ElementsAre(0, 1 << 20));
  EXPECT_EQ(server_.uploads().at("a"), content_);
}

TEST_F(DirectTransferTest, AnUploadEndsWithItsLeaseAndItsFile) {
  server_.FailNext("PrepareUpload", {grpc::StatusCode::ABORTED});
  EXPECT_TRUE(absl::IsAborted(Upload()));
  std::ofstream(path_) << "another size";
  EXPECT_TRUE(absl::IsInternal(UploadDirectly(upload_urls_, server_.stub(), {}, ref_, path_, {})));
  EXPECT_EQ(server_.calls("UploadArtifact"), 0);
  EXPECT_THAT(storage_.log(), SizeIs(0));
}

TEST_F(DirectTransferTest, ErrorsOfTheSinkAndOfTheServerEndIt) {
  sunk_ = absl::ResourceExhaustedError("disk full");
  EXPECT_EQ(Fetch(), sunk_);
  server_.FailNext("FetchArtifact", {grpc::StatusCode::ABORTED});
  EXPECT_TRUE(absl::IsAborted(Fetch()));
}

}  // namespace
}  // namespace qpruner::worker
