#include "net/http_client.h"

#include <algorithm>
#include <string>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/scripted_http_server.h"

namespace qpruner {
namespace {

using Request = ScriptedHttpServer::Request;
using Reply = ScriptedHttpServer::Reply;
using testing::HasSubstr;

TEST(HttpClient, SendsAndReceives) {
  ScriptedHttpServer server([](const Request& request) {
    return Reply{.status = 201,
                 .headers = {{"X-Saw", request.method + " " + request.target + " " +
                                           request.headers.at("x-own")}},
                 .body = "got " + request.body};
  });
  HttpClient client;
  for (int round = 0; round < 3; ++round) {
    HttpRequest request{.method = "PUT", .url = server.url() + "/a/../b?c=d"};
    request.headers = {{"x-own", "1"}};
    request.body = "body";
    const auto response = client.Send(request);
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->status, 201);
    EXPECT_EQ(response->Header("x-saw"), "PUT /a/../b?c=d 1");
    EXPECT_EQ(response->body, "got body");
  }
}

TEST(HttpClient, SendsABodyFromASource) {
  ScriptedHttpServer server([](const Request& request) {
    return Reply{.body = request.method + request.headers.at("content-length") + request.body};
  });
  std::string left(300'000, 'x');
  HttpRequest request{.method = "PUT", .url = server.url()};
  request.source = [&](char* buffer, size_t size) -> absl::StatusOr<size_t> {
    const size_t count = left.copy(buffer, std::min<size_t>(size, 10'000));
    left.erase(0, count);
    return count;
  };
  request.source_bytes = 300'000;
  const auto response = HttpClient().Send(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->body, "PUT300000" + std::string(300'000, 'x'));
  // Too little is no end.
  left = "too little";
  EXPECT_TRUE(absl::IsDataLoss(HttpClient().Send(request).status()));
  request.source = [](char*, size_t) { return absl::AbortedError("the file is gone"); };
  EXPECT_TRUE(absl::IsAborted(HttpClient().Send(request).status()));
}

TEST(HttpClient, AnAnswerThatBreaksOffIsUnavailable) {
  ScriptedHttpServer server([](const Request&) {
    return Reply{.body = "0123456789", .cut_after = 4, .then = Reply::Then::kClose};
  });
  std::string got;
  HttpRequest request{.url = server.url() + "/secret?token=s3cr3t"};
  request.headers = {{"authorization", "s3cr3t"}};
  request.sink = [&](absl::string_view data) {
    got.append(data.data(), data.size());
    return absl::OkStatus();
  };
  const absl::Status status = HttpClient().Send(request).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(got, "0123") << "what came was handed on";
  EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1"));
  EXPECT_THAT(std::string(status.message()), testing::Not(HasSubstr("s3cr3t")));
}

TEST(HttpClient, SilenceIsBounded) {
  ScriptedHttpServer server([](const Request&) {
    return Reply{.body = "0123456789", .cut_after = 4, .then = Reply::Then::kStall};
  });
  HttpRequest request{.url = server.url(), .idle_timeout = absl::Seconds(1)};
  EXPECT_TRUE(absl::IsUnavailable(HttpClient().Send(request).status()));
  request.idle_timeout = absl::Hours(1);
  request.total_timeout = absl::Milliseconds(50);
  EXPECT_TRUE(absl::IsUnavailable(HttpClient().Send(request).status()));
}

TEST(HttpClient, StopsWhenAskedTo) {
  ScriptedHttpServer server([](const Request&) {
    return Reply{.body = "0123456789", .cut_after = 4, .then = Reply::Then::kStall};
  });
  std::stop_source stop;
  HttpRequest request{.url = server.url(), .idle_timeout = absl::Hours(1)};
  request.stop = stop.get_token();
  request.sink = [&](absl::string_view) {
    stop.request_stop();
    return absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsCancelled(HttpClient().Send(request).status()));
}

TEST(HttpClient, BoundsWhatItKeeps) {
  ScriptedHttpServer server([](const Request& request) {
    return Reply{.status = request.target == "/error" ? 404 : 200,
                 .body = std::string(200'000, 'x')};
  });
  HttpRequest request{.url = server.url(), .max_body_bytes = 100'000};
  EXPECT_TRUE(absl::IsResourceExhausted(HttpClient().Send(request).status()));
  // Of an error, a part is enough; the sink gets nothing of it.
  request.url += "/error";
  request.sink = [](absl::string_view) { return absl::InternalError("not for the sink"); };
  const auto error = HttpClient().Send(request);
  ASSERT_TRUE(error.ok()) << error.status();
  EXPECT_EQ(error->body.size(), 64u << 10);
}

TEST(HttpClient, AnErrorWithoutAnEndIsAnErrorAllTheSame) {
  ScriptedHttpServer server([](const Request&) {
    return Reply{.status = 404,
                 .body = std::string(200'000, 'x'),
                 .cut_after = 100'000,
                 .then = Reply::Then::kStall};
  });
  const auto error = HttpClient().Send({.url = server.url(), .idle_timeout = absl::Hours(1)});
  ASSERT_TRUE(error.ok()) << error.status();
  EXPECT_EQ(error->status, 404);
}

TEST(HttpClient, ErrorsOfTheCallerEndIt) {
  ScriptedHttpServer server([](const Request&) { return Reply{.body = "0123456789"}; });
  HttpRequest request{.url = server.url()};
  request.on_headers = [](const HttpResponse& response) {
    EXPECT_EQ(response.Header("content-length"), "10");
    return absl::AbortedError("seen enough");
  };
  request.sink = [](absl::string_view) { return absl::InternalError("must not be reached"); };
  EXPECT_TRUE(absl::IsAborted(HttpClient().Send(request).status()));
}

TEST(HttpClient, FollowsNoRedirectAndNoOtherProtocol) {
  ScriptedHttpServer server([](const Request&) {
    return Reply{.status = 302, .headers = {{"Location", "http://127.0.0.1:1/"}}};
  });
  const auto response = HttpClient().Send({.url = server.url()});
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 302);
  EXPECT_FALSE(HttpClient().Send({.url = "file:///etc/passwd"}).ok());
  EXPECT_TRUE(absl::IsUnavailable(HttpClient().Send({.url = "http://127.0.0.1:1/"}).status()));
}

TEST(PercentEncode, KeepsWhatNeedsNoCode) {
  EXPECT_EQ(PercentEncode("a-b._~/c d%", true), "a-b._~/c%20d%25");
  EXPECT_EQ(PercentEncode("a/b", false), "a%2Fb");
  EXPECT_EQ(UrlOrigin("https://user:pass@host:1/x?y"), "https://host:1");
}

}  // namespace
}  // namespace qpruner
