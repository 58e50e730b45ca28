#include "net/signed_url_transfer.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/scripted_http_server.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner {
namespace {

using Request = ScriptedHttpServer::Request;
using Reply = ScriptedHttpServer::Reply;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class SignedUrlTransferTest : public testing::Test {
 protected:
  Reply Rest(const Request& request) const { return ScriptedHttpServer::RestOf(content_, request); }
  // Goes on behind what is there.
  absl::Status Read(std::stop_token stop = {}) {
    return transfer_.Read(
        server_.url() + "/artifact?signature=s3cr3t", static_cast<int64_t>(got_.size()),
        static_cast<int64_t>(content_.size()),
        [this](absl::string_view data) {
          got_.append(data.data(), data.size());
          return sunk_;
        },
        stop);
  }
  // One that the URL is to blame for.
  void ExpectFailure(const absl::Status& status) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(status.ToString(), AllOf(HasSubstr("127.0.0.1"), Not(HasSubstr("s3cr3t")),
                                         Not(HasSubstr("artifact"))));
  }

  const std::string content_ = std::string(3 << 20, 'a') + "the end";
  std::function<Reply(const Request&)> answer_ = [this](const Request& r) { return Rest(r); };
  ScriptedHttpServer server_{[this](const Request& request) { return answer_(request); }};
  SimulatedClock clock_;
  SignedUrlTransfer transfer_{clock_};
  std::string got_;
  absl::Status sunk_;
};

TEST_F(SignedUrlTransferTest, ReadsFromAnOffsetToTheEnd) {
  got_ = content_.substr(0, 1000);
  EXPECT_TRUE(Read().ok());
  EXPECT_EQ(got_, content_);
  EXPECT_TRUE(transfer_.usable());
}

TEST_F(SignedUrlTransferTest, WhatBrokeOffGoesOnWhereItStopped) {
  answer_ = [&](const Request& request) {
    Reply reply = Rest(request);
    reply.cut_after = 2 << 20;
    reply.then = Reply::Then::kClose;
    return reply;
  };
  ExpectFailure(Read());
  EXPECT_EQ(got_.size(), 2u << 20);
  EXPECT_TRUE(transfer_.usable()) << "it brought something";
  answer_ = [&](const Request& request) { return Rest(request); };
  EXPECT_TRUE(Read().ok());
  EXPECT_EQ(got_, content_);
}

TEST_F(SignedUrlTransferTest, AStorageThatBringsNothingIsLeftAloneForAWhile) {
  answer_ = [](const Request&) {
    return Reply{.status = 403, .body = "<Error>s3cr3t has expired</Error>"};
  };
  ExpectFailure(Read());
  EXPECT_FALSE(transfer_.usable());
  clock_.Advance(absl::Minutes(5));
  EXPECT_TRUE(transfer_.usable());
  ExpectFailure(transfer_.Read("http://127.0.0.1:1/artifact?s3cr3t", 0, 10,
                               [](absl::string_view) { return absl::OkStatus(); }, {}));
  EXPECT_FALSE(transfer_.usable());
}

TEST_F(SignedUrlTransferTest, OtherBytesThanAskedForNeverReachTheSink) {
  std::vector<Reply> wrong = {
      // All of it; another part; of something larger; elsewhere.
      {.status = 200, .body = content_},
      {.status = 206, .headers = {{"Content-Range", "bytes 5-9/10"}}, .body = "56789"},
      {.status = 206,
       .headers = {{"Content-Range",
                    absl::StrCat("bytes 10-", content_.size(), "/", content_.size() + 1)}},
       .body = content_},
      {.status = 302, .headers = {{"Location", server_.url() + "/elsewhere"}}}};
  for (const Reply& reply : wrong) {
    got_ = content_.substr(0, 10);
    answer_ = [&](const Request&) { return reply; };
    ExpectFailure(Read());
    EXPECT_EQ(got_.size(), 10u) << reply.status;
  }
  EXPECT_EQ(server_.log().size(), wrong.size()) << "no redirect was followed";
  // More, and less, than the headers say that it is.
  for (const std::string& body : {content_ + "x", content_.substr(1)}) {
    got_.clear();
    answer_ = [&](const Request& request) {
      Reply reply = Rest(request);
      reply.body = body;
      return reply;
    };
    ExpectFailure(Read());
    EXPECT_LE(got_.size(), content_.size());
  }
}

TEST_F(SignedUrlTransferTest, WritesWhatTheSourceGives) {
  Request seen;
  answer_ = [&](const Request& request) {
    seen = request;
    return Reply{};
  };
  absl::StatusOr<size_t> given = 5;
  const auto write = [&] {
    return transfer_.Write(server_.url() + "/artifact?signature=s3cr3t", {{"x-checksum", "abc"}}, 5,
                           [&](char* buffer, size_t) {
                             std::string("hello").copy(buffer, 5);
                             return given;
                           },
                           {});
  };
  EXPECT_TRUE(write().ok());
  EXPECT_EQ(seen.method + " " + seen.body + " " + seen.headers["x-checksum"], "PUT hello abc");
  given = absl::ResourceExhaustedError("no more memory");
  EXPECT_EQ(write(), given.status());
  EXPECT_TRUE(transfer_.usable());
  given = 5;
  answer_ = [](const Request&) { return Reply{.status = 403, .body = "s3cr3t"}; };
  ExpectFailure(write());
  EXPECT_FALSE(transfer_.usable());
}

TEST_F(SignedUrlTransferTest, ErrorsOfTheSinkAndStopsAreNotTheUrlsFault) {
  sunk_ = absl::ResourceExhaustedError("disk full");
  EXPECT_EQ(Read(), sunk_);
  sunk_ = absl::OkStatus();
  std::stop_source stop;
  stop.request_stop();
  EXPECT_TRUE(absl::IsCancelled(Read(stop.get_token())));
  EXPECT_TRUE(transfer_.usable());
}

}  // namespace
}  // namespace qpruner
