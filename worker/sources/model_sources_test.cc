#include "worker/sources/model_sources.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/scripted_http_server.h"

namespace qpruner::worker {
namespace {

namespace fs = std::filesystem;
using Request = ScriptedHttpServer::Request;
using Reply = ScriptedHttpServer::Reply;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";
constexpr char kToken[] = "hf_a-token-that-stays-secret";

// A hub with one model, and a storage on another port that it redirects large files to.
class ModelSourcesTest : public ::testing::Test {
 protected:
  ModelSourcesTest()
      : storage_([this](const Request& request) { return Answer(storage_fault_, request); }),
        hub_([this](const Request& request) { return Answer(hub_fault_, request); }) {
    char pattern[] = "/tmp/qpruner_model_sources_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    weights_.resize(300'000);
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = static_cast<char>(i * 31 % 251);
    cache_ = ArtifactCache::Open(folder_ + "/cache", 1 << 30).value();
    options_.hub =
        HubOptions{.endpoint = hub_.url(),
                   .token = kToken,
                   .max_tries = 4,
                   .backoff = {.initial = absl::Milliseconds(1), .maximum = absl::Milliseconds(5)},
                   .longest_retry_after = absl::Seconds(2),
                   .idle_timeout = absl::Seconds(1)};
  }
  ~ModelSourcesTest() override { fs::remove_all(folder_); }

  using Fault = std::function<std::optional<Reply>(const Request&)>;
  Reply Answer(const Fault& fault, const Request& request) {
    if (fault) {
      if (std::optional<Reply> reply = fault(request)) return *reply;
    }
    return Honest(request);
  }
  // What an honest hub, or its storage, answers.
  Reply Honest(const Request& request) {
    if (absl::StartsWith(request.target, "/api/models/org/tiny/revision/")) {
      if (!absl::StrContains(request.target, "/main?") &&
          !absl::StrContains(request.target, absl::StrCat("/", kCommit, "?"))) {
        return {.status = 404};
      }
      return {.body = listing_};
    }
    absl::string_view path = request.target;
    if (absl::ConsumePrefix(&path, absl::StrCat("/org/tiny/resolve/", kCommit, "/"))) {
      if (path == "config.json") return {.body = "{}"};
      if (path == "model.safetensors") {
        return {.status = 302,
                .headers = {{"Location", storage_.url() + "/bytes?signature=s1gned"}}};
      }
    }
    if (absl::StartsWith(request.target, "/bytes")) return Bytes(request);
    return {.status = 404};
  }
  Reply Bytes(const Request& request) {
    const auto range = request.headers.find("range");
    if (range == request.headers.end()) return {.body = weights_};
    int64_t from = 0;
    absl::string_view text = range->second;
    absl::ConsumePrefix(&text, "bytes=");
    absl::ConsumeSuffix(&text, "-");
    EXPECT_TRUE(absl::SimpleAtoi(text, &from));
    return {.status = 206,
            .headers = {{"Content-Range", absl::StrCat("bytes ", from, "-", weights_.size() - 1,
                                                       "/", weights_.size())}},
            .body = weights_.substr(static_cast<size_t>(from))};
  }

  absl::StatusOr<std::string> Fetch(const std::string& uri = "hf://org/tiny") {
    // The blob of config.json is git's name of "{}": `printf '{}' | git hash-object --stdin`.
    if (listing_.empty()) {
      listing_ = absl::StrCat(R"({"id": "org/tiny", "sha": ")", kCommit, R"(", "siblings": [
            {"rfilename": "README.md", "size": 5, "blobId": "no"},
            {"rfilename": "modeling.py", "size": 5, "blobId": "no"},
            {"rfilename": "pytorch_model.bin", "size": 9, "blobId": "no"},
            {"rfilename": "onnx/config.json", "size": 9, "blobId": "no"},
            {"rfilename": "config.json", "size": 2,
             "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"},
            {"rfilename": "model.safetensors", "size": )",
                              weights_.size(), R"(, "blobId": "no", "lfs": {"sha256": ")",
                              Sha256Hex(weights_), R"(", "size": 1, "pointerSize": 1}}]})");
    }
    fs::remove_all(source());
    fs::create_directories(source());
    ModelSources sources(options_);
    auto fetched = sources.Fetch(
        uri, source(), *cache_, [this](const std::string& line) { progress_.push_back(line); },
        stop_.get_token());
    EXPECT_THAT(std::string(fetched.status().message()), Not(HasSubstr(kToken)));
    EXPECT_THAT(std::string(fetched.status().message()), Not(HasSubstr("s1gned")));
    return fetched;
  }
  std::string source() const { return folder_ + "/source"; }
  std::map<std::string, std::string> Files() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(source())) {
      std::ostringstream text;
      text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
      files[entry.path().filename().string()] = text.str();
    }
    return files;
  }
  void ExpectFetched() {
    const auto fetched = Fetch();
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_EQ(*fetched, absl::StrCat("hf://org/tiny@", kCommit));
    EXPECT_THAT(Files(),
                ElementsAre(Pair("config.json", "{}"), Pair("model.safetensors", weights_)));
  }
  // The first requests for the weights' bytes get this.
  void FirstBytes(int count, std::function<Reply(const Request&)> reply) {
    storage_fault_ = [this, count, reply, seen = 0](const Request& request) mutable {
      return seen++ < count ? std::optional<Reply>(reply(request)) : std::nullopt;
    };
  }

  std::string folder_;
  std::string weights_;
  std::string listing_;
  Fault hub_fault_;
  Fault storage_fault_;
  ScriptedHttpServer storage_;
  ScriptedHttpServer hub_;
  ModelSourceOptions options_;
  std::unique_ptr<ArtifactCache> cache_;
  std::vector<std::string> progress_;
  std::stop_source stop_;
};

TEST_F(ModelSourcesTest, BringsTheModelAndNothingElse) {
  std::vector<std::string> tokens;
  hub_fault_ = [&](const Request& request) {
    EXPECT_EQ(request.headers.at("authorization"), absl::StrCat("Bearer ", kToken));
    return std::nullopt;
  };
  storage_fault_ = [&](const Request& request) {
    EXPECT_FALSE(request.headers.contains("authorization")) << "another host gets no token";
    return std::nullopt;
  };
  ExpectFetched();
  EXPECT_THAT(progress_, ::testing::Contains(HasSubstr("fetching model.safetensors")));
  EXPECT_EQ(storage_.log().size(), 1u);
  // The next time the weights are in the cache.
  ExpectFetched();
  EXPECT_EQ(storage_.log().size(), 1u);
  // By its commit.
  EXPECT_EQ(*Fetch(absl::StrCat("hf://org/tiny@", kCommit)),
            absl::StrCat("hf://org/tiny@", kCommit));
}

TEST_F(ModelSourcesTest, TransfersThatAreCutGoOnWhereTheyStopped) {
  FirstBytes(6, [this](const Request& request) {
    Reply reply = Bytes(request);
    reply.cut_after = 40'000;
    reply.then = Reply::Then::kClose;
    return reply;
  });
  ExpectFetched();
  EXPECT_EQ(storage_.log().size(), 7u);
}

TEST_F(ModelSourcesTest, WhatABrokenAttemptBroughtIsNotFetchedAgain) {
  FirstBytes(100, [this](const Request& request) {
    Reply reply = Bytes(request);
    // Once some bytes, then never more.
    reply.cut_after = request.headers.contains("range") ? 0 : 100'000;
    reply.then = Reply::Then::kClose;
    return reply;
  });
  const absl::Status broken = Fetch().status();
  EXPECT_TRUE(absl::IsUnavailable(broken)) << broken;
  std::vector<std::string> ranges;
  storage_fault_ = [&](const Request& request) {
    ranges.push_back(request.headers.contains("range") ? request.headers.at("range") : "all");
    return std::nullopt;
  };
  ExpectFetched();
  EXPECT_THAT(ranges, ElementsAre("bytes=100000-"));
}

TEST_F(ModelSourcesTest, AServerThatIgnoresRangesIsReadFromTheBeginning) {
  int requests = 0;
  storage_fault_ = [&](const Request&) {
    Reply reply{.body = weights_};
    if (++requests == 1) {
      reply.cut_after = 40'000;
      reply.then = Reply::Then::kClose;
    }
    return std::optional<Reply>(reply);
  };
  ExpectFetched();
  EXPECT_EQ(requests, 2);
}

TEST_F(ModelSourcesTest, ASilentServerIsAskedAgain) {
  FirstBytes(1, [this](const Request& request) {
    Reply reply = Bytes(request);
    reply.cut_after = 500;
    reply.then = Reply::Then::kStall;
    return reply;
  });
  ExpectFetched();
}

TEST_F(ModelSourcesTest, WrongLengthsAreDataLoss) {
  storage_fault_ = [&](const Request&) { return std::optional<Reply>({.body = "short"}); };
  absl::Status status = Fetch().status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("has 5 bytes, but the hub lists 300000"));
  storage_fault_ = [&](const Request&) {
    return std::optional<Reply>({.body = weights_ + "and more"});
  };
  EXPECT_TRUE(absl::IsDataLoss(Fetch().status()));
}

TEST_F(ModelSourcesTest, WrongBytesAreFetchedOnceMoreAndThenDataLoss) {
  const auto wrong = [this](const Request& request) {
    Reply reply = Bytes(request);
    reply.body[1'000] ^= 1;
    return reply;
  };
  FirstBytes(1, wrong);
  ExpectFetched();
  fs::remove_all(folder_ + "/cache");
  fs::create_directories(folder_ + "/cache");
  FirstBytes(100, wrong);
  const absl::Status status = Fetch().status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  EXPECT_FALSE(fs::exists(source() + "/model.safetensors"));
}

TEST_F(ModelSourcesTest, WrongBytesOfSmallFilesAreNoticedToo) {
  int wrong = 1;
  hub_fault_ = [&](const Request& request) -> std::optional<Reply> {
    if (!absl::EndsWith(request.target, "/config.json") || wrong-- <= 0) return std::nullopt;
    return Reply{.body = "[]"};
  };
  ExpectFetched();
  wrong = 100;
  const absl::Status status = Fetch().status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
}

TEST_F(ModelSourcesTest, ABusyHubIsAskedAgainWhenItSays) {
  int busy = 1;
  hub_fault_ = [&](const Request&) -> std::optional<Reply> {
    if (busy-- > 0) return Reply{.status = 429, .headers = {{"Retry-After", "1"}}};
    return std::nullopt;
  };
  const absl::Time before = absl::Now();
  ExpectFetched();
  EXPECT_GE(absl::Now() - before, absl::Seconds(1));
  // One that asks for more time than a worker has is not waited for.
  hub_fault_ = [&](const Request&) {
    return std::optional<Reply>({.status = 429, .headers = {{"Retry-After", "3600"}}});
  };
  EXPECT_TRUE(absl::IsUnavailable(Fetch().status()));
  // Nor is one that is busy for ever.
  const size_t asked = hub_.log().size();
  hub_fault_ = [&](const Request&) { return std::optional<Reply>({.status = 503}); };
  EXPECT_TRUE(absl::IsUnavailable(Fetch().status()));
  EXPECT_EQ(hub_.log().size() - asked, 4u);
}

TEST_F(ModelSourcesTest, RedirectsEnd) {
  storage_fault_ = [&](const Request&) {
    return std::optional<Reply>({.status = 302, .headers = {{"Location", "/bytes?again"}}});
  };
  const absl::Status loop = Fetch().status();
  EXPECT_TRUE(absl::IsUnavailable(loop)) << loop;
  EXPECT_THAT(std::string(loop.message()), HasSubstr("redirects more than 5 times"));
  storage_fault_ = [&](const Request&) {
    return std::optional<Reply>({.status = 302, .headers = {{"Location", "file:///etc/passwd"}}});
  };
  EXPECT_TRUE(absl::IsUnavailable(Fetch().status()));
}

TEST_F(ModelSourcesTest, WhatIsNotThereOrClosedIsSaid) {
  const absl::Status missing = Fetch("hf://org/tiny@v2").status();
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_THAT(std::string(missing.message()), HasSubstr("hf://org/tiny@v2"));
  for (const int code : {401, 403}) {
    hub_fault_ = [&](const Request&) { return std::optional<Reply>({.status = code}); };
    const absl::Status closed = Fetch().status();
    EXPECT_TRUE(absl::IsFailedPrecondition(closed)) << closed;
    EXPECT_THAT(std::string(closed.message()), HasSubstr("--hub-token-file"));
  }
}

TEST_F(ModelSourcesTest, ListingsAreNotTrusted) {
  const auto with = [&](const std::string& listing) {
    listing_ = listing;
    return Fetch().status();
  };
  const std::string head = absl::StrCat(R"({"sha": ")", kCommit, R"(", "siblings": [)");
  for (const std::string& broken :
       {std::string("<html>"), std::string("{}"), std::string(R"({"sha": "main", "siblings": []})"),
        head + R"({"rfilename": 7}]})", head + R"({"rfilename": "config.json"}]})",
        head + R"({"rfilename": "config.json", "size": -1, "blobId": "x"}]})",
        head + R"({"rfilename": "model.safetensors", "size": 1, "lfs": {"sha256": "../x"}}]})"}) {
    const absl::Status status = with(broken);
    EXPECT_TRUE(absl::IsUnavailable(status)) << broken << status;
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(with(head + "]}"))) << "no model";
  // Names that climb are no model's.
  EXPECT_TRUE(absl::IsFailedPrecondition(
      with(head + R"({"rfilename": "../config.json", "size": 1, "blobId": "x"}]})")));
}

TEST_F(ModelSourcesTest, SizeIsBoundedBeforeAnythingIsFetched) {
  options_.max_model_bytes = 100'000;
  const absl::Status status = Fetch().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--max-model-bytes 100000"));
  EXPECT_TRUE(storage_.log().empty());
}

TEST_F(ModelSourcesTest, StopsWhenAskedTo) {
  FirstBytes(100, [this](const Request& request) {
    stop_.request_stop();
    Reply reply = Bytes(request);
    reply.cut_after = 500;
    reply.then = Reply::Then::kStall;
    return reply;
  });
  options_.hub->idle_timeout = absl::Hours(1);
  EXPECT_TRUE(absl::IsCancelled(Fetch().status()));
}

TEST_F(ModelSourcesTest, WhatTheOperatorDidNotAllowIsRefused) {
  options_.hub.reset();
  EXPECT_TRUE(absl::IsFailedPrecondition(Fetch().status()));
  options_.s3_models = {{"models", "team"}};
  options_.s3.endpoint = storage_.url();
  for (const char* uri : {"s3://secrets/team", "s3://models", "s3://models/teammate/x"}) {
    const absl::Status status = Fetch(uri).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << uri << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--model-root"));
  }
  EXPECT_TRUE(storage_.log().empty());
}

TEST_F(ModelSourcesTest, BringsModelsFromS3) {
  options_.s3_models = {{"models", "team"}};
  options_.s3.endpoint = storage_.url();
  options_.s3.credentials = {"id", kToken, ""};
  options_.s3.backoff = {.initial = absl::Milliseconds(1), .maximum = absl::Milliseconds(5)};
  bool changes = false;
  int cuts = 3;
  storage_fault_ = [&](const Request& request) -> std::optional<Reply> {
    if (absl::StrContains(request.target, "list-type=2")) {
      return Reply{.body = absl::StrCat(
                       "<R><Contents><Key>team/tiny/config.json</Key><Size>2</Size><ETag>e1</ETag>"
                       "</Contents><Contents><Key>team/tiny/train.py</Key><Size>2</Size></Contents>"
                       "<Contents><Key>team/tiny/model.safetensors</Key><Size>",
                       weights_.size(), "</Size><ETag>e2</ETag></Contents></R>")};
    }
    const bool config = absl::EndsWith(request.target, "config.json");
    EXPECT_EQ(request.headers.at("if-match"), config ? "e1" : "e2");
    if (!config && changes) return Reply{.status = 412};
    const std::string content = config ? "{}" : weights_;
    const std::string range = request.headers.at("range");  // bytes=FROM-TO
    const int64_t from = atoll(range.substr(6).c_str());
    Reply reply{.status = 206,
                .headers = {{"Content-Range", absl::StrCat("bytes ", from, "-", content.size() - 1,
                                                           "/", content.size())}},
                .body = content.substr(static_cast<size_t>(from))};
    if (!config && cuts-- > 0) {
      reply.cut_after = 50'000;
      reply.then = Reply::Then::kClose;
    }
    return reply;
  };
  const auto fetched = Fetch("s3://models/team/tiny");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(*fetched, "s3://models/team/tiny");
  EXPECT_THAT(Files(), ElementsAre(Pair("config.json", "{}"), Pair("model.safetensors", weights_)));
  changes = true;
  const absl::Status changed = Fetch("s3://models/team/tiny").status();
  EXPECT_TRUE(absl::IsUnavailable(changed)) << changed;
  EXPECT_THAT(std::string(changed.message()), HasSubstr("changed while it was read"));
}

}  // namespace
}  // namespace qpruner::worker
