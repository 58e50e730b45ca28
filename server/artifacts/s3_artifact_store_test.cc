#include "server/artifacts/s3_artifact_store.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "server/artifacts/artifact_store_contract_test.h"
#include "server/testing/versity_gateway.h"
#include "tests/testing/scripted_http_server.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using testing::HasSubstr;
using testing::Not;

// The smallest that S3 takes but for the last.
constexpr int64_t kPartBytes = int64_t{5} << 20;

class S3UnderTest final : public ArtifactStoreUnderTest {
 public:
  explicit S3UnderTest(const std::string& prefix) {
    if (VersityGateway::Shared() == nullptr) return;
    options_.location = {VersityGateway::Shared()->NewBucket(), prefix};
    options_.s3 = VersityGateway::Shared()->options();
    options_.part_bytes = kPartBytes;
    options_.read_bytes = 1 << 20;
  }
  absl::StatusOr<std::unique_ptr<ArtifactStore>> Open() override {
    return OpenS3ArtifactStore(options_);
  }
  std::string MissingReason() const override {
    return VersityGateway::Shared() == nullptr ? "no S3 server to test against" : "";
  }
  S3ArtifactStoreOptions options_;
};

std::unique_ptr<ArtifactStoreUnderTest> MakeS3UnderTest() {
  return std::make_unique<S3UnderTest>("some/prefix");
}
std::unique_ptr<ArtifactStoreUnderTest> MakeS3WithoutPrefix() {
  return std::make_unique<S3UnderTest>("");
}

INSTANTIATE_TEST_SUITE_P(S3, ArtifactStoreContract,
                         testing::Values(&MakeS3UnderTest, &MakeS3WithoutPrefix));

class S3ArtifactStoreTest : public testing::Test {
 protected:
  using Request = ScriptedHttpServer::Request;
  using Reply = ScriptedHttpServer::Reply;

  void SetUp() override {
    if (VersityGateway::Shared() == nullptr) GTEST_SKIP() << "no S3 server to test against";
    direct_ = under_test_.Open().value();
    proxy_ = std::make_unique<ScriptedHttpServer>(
        [this](const Request& request) { return fault_ ? fault_(request) : Forward(request); });
    options_ = under_test_.options_;
    options_.s3.endpoint = proxy_->url();
    options_.s3.idle_timeout = absl::Seconds(1);
    store_ = OpenS3ArtifactStore(options_).value();
  }
  // To the real server, as it came.
  Reply Forward(const Request& request) {
    HttpRequest forwarded{.method = request.method};
    forwarded.url = under_test_.options_.s3.endpoint + request.target;
    for (const auto& [name, value] : request.headers) {
      if (name != "content-length") forwarded.headers.emplace_back(name, value);
    }
    forwarded.body = request.body;
    forwarded.max_body_bytes = 64 << 20;
    const auto response = http_.Send(forwarded);
    if (!response.ok()) return {.status = 502};
    Reply reply{.status = response->status, .body = response->body};
    for (const auto& [name, value] : response->headers) {
      if (name == "content-length") {
        (void)absl::SimpleAtoi(value, &reply.content_length.emplace());
      } else if (name != "transfer-encoding" && name != "connection") {
        reply.headers.emplace_back(name, value);
      }
    }
    return reply;
  }
  absl::Status Write(ArtifactStore& store, absl::string_view content) {
    ASSIGN_OR_RETURN(auto writer, store.Create(Sha256Hex(content), content.size()));
    for (; !content.empty(); content.remove_prefix(std::min<size_t>(content.size(), 1 << 20))) {
      RETURN_IF_ERROR(writer->Append(content.substr(0, 1 << 20)));
    }
    return writer->Commit();
  }
  absl::StatusOr<std::string> Load(ArtifactStore& store, const std::string& sha256) {
    ASSIGN_OR_RETURN(auto reader, store.Open(sha256));
    std::string content;
    for (;;) {
      ASSIGN_OR_RETURN(const std::string data, reader->Read(content.size(), 30'000));
      if (data.empty()) return content;
      content += data;
    }
  }
  static std::string Text(size_t size) {
    std::string text(size, 'a');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + i % 23 + i / 1000 % 3);
    return text;
  }
  std::string FileOf(const std::string& sha256) const {
    return absl::StrCat(VersityGateway::Shared()->folder(), "/", options_.location.bucket,
                        "/p/objects/", sha256);
  }

  S3UnderTest under_test_{"p"};
  HttpClient http_;
  S3ArtifactStoreOptions options_;
  std::function<Reply(const Request&)> fault_;
  std::unique_ptr<ScriptedHttpServer> proxy_;
  std::unique_ptr<ArtifactStore> direct_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_F(S3ArtifactStoreTest, LargeOnesTravelInParts) {
  // Of sizes around the parts' borders.
  for (const int64_t size : {kPartBytes, kPartBytes + 1, 2 * kPartBytes, 2 * kPartBytes + 12'345}) {
    const std::string content = Text(static_cast<size_t>(size));
    const absl::Status stored = Write(*store_, content);
    ASSERT_TRUE(stored.ok()) << stored;
    EXPECT_EQ(store_->Describe(Sha256Hex(content))->size_bytes, size);
    EXPECT_TRUE(store_->Verify(Sha256Hex(content)).ok());
  }
  int parts = 0;
  for (const std::string& line : proxy_->log()) parts += absl::StrContains(line, "partNumber=");
  EXPECT_EQ(parts, 0 + 2 + 2 + 3);
}

TEST_F(S3ArtifactStoreTest, WrongPartsNeverBecomeAnObject) {
  const std::string content = Text(kPartBytes + 100);
  const std::string sha256 = Sha256Hex(content);
  {
    auto writer = *store_->Create(sha256, content.size());
    ASSERT_TRUE(writer->Append(content.substr(0, kPartBytes + 50)).ok());
    ASSERT_TRUE(writer->Append(std::string(50, '!')).ok());
    EXPECT_TRUE(absl::IsDataLoss(writer->Commit()));
  }
  EXPECT_FALSE(*store_->Contains(sha256));
  // And its parts are gone.
  S3Client client(under_test_.options_.s3, options_.location.bucket);
  EXPECT_TRUE(client.ListUploads("p/objects/")->empty());
}

TEST_F(S3ArtifactStoreTest, PartsOfACrashedServerAreRemovedOnceTheyAreOld) {
  S3Client client(under_test_.options_.s3, options_.location.bucket);
  const std::string key = "p/objects/" + Sha256Hex("never finished");
  const std::string upload = client.BeginUpload(key).value();
  ASSERT_TRUE(client.PutPart(key, upload, 1, Text(1000)).ok());
  ASSERT_TRUE(store_->RemoveAbandonedWrites(absl::Now() - absl::Hours(1)).ok());
  ASSERT_EQ(client.ListUploads("p/objects/")->size(), 1u);
  ASSERT_TRUE(store_->RemoveAbandonedWrites(absl::Now() + absl::Hours(1)).ok());
  EXPECT_TRUE(client.ListUploads("p/objects/")->empty());
}

TEST_F(S3ArtifactStoreTest, DownloadsThatBreakOffGoOnWhereTheyStopped) {
  const std::string content = Text(3'000'000);
  ASSERT_TRUE(Write(*store_, content).ok());
  int breaks = 0;
  fault_ = [&](const Request& request) {
    Reply reply = Forward(request);
    // Each half of what is left: more breaks than the tries that are made without progress.
    if (request.method == "GET" && reply.body.size() > 2'000) {
      ++breaks;
      reply.cut_after = static_cast<int64_t>(reply.body.size()) / 2;
      reply.then = Reply::Then::kClose;
    }
    return reply;
  };
  const auto loaded = Load(*store_, Sha256Hex(content));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*loaded, content);
  EXPECT_GT(breaks, 10);
}

TEST_F(S3ArtifactStoreTest, ASilentStorageIsAskedAgain) {
  const std::string content = Text(5'000);
  ASSERT_TRUE(Write(*store_, content).ok());
  int stalls = 0;
  fault_ = [&](const Request& request) {
    Reply reply = Forward(request);
    if (request.method == "GET" && stalls++ == 0) {
      reply.cut_after = 1'000;
      reply.then = Reply::Then::kStall;
    }
    return reply;
  };
  EXPECT_EQ(*Load(*store_, Sha256Hex(content)), content);
  EXPECT_EQ(stalls, 2);
}

TEST_F(S3ArtifactStoreTest, BytesThatChangeOnTheWayInAreRefusedAndSentAgain) {
  const std::string content = Text(20'000);
  int damaged = 0;
  fault_ = [&](const Request& request) {
    if (request.method != "PUT" || damaged++ > 0) return Forward(request);
    Request changed = request;
    changed.body[10'000] ^= 1;
    return Forward(changed);
  };
  const absl::Status stored = Write(*store_, content);
  ASSERT_TRUE(stored.ok()) << stored;
  EXPECT_EQ(damaged, 2);
  EXPECT_TRUE(direct_->Verify(Sha256Hex(content)).ok());
}

TEST_F(S3ArtifactStoreTest, BytesThatChangeOnTheWayOutAreNoticed) {
  const std::string content = Text(20'000);
  const std::string sha256 = Sha256Hex(content);
  ASSERT_TRUE(Write(*store_, content).ok());
  fault_ = [&](const Request& request) {
    Reply reply = Forward(request);
    if (request.method == "GET" && reply.body.size() > 5'000) reply.body[5'000] ^= 1;
    return reply;
  };
  const absl::Status status = Load(*store_, sha256).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(sha256));
  fault_ = nullptr;
  EXPECT_EQ(*Load(*store_, sha256), content);
}

TEST_F(S3ArtifactStoreTest, BytesThatChangedInTheStorageAreNoticedAndRepaired) {
  const std::string content = Text(20'000);
  const std::string sha256 = Sha256Hex(content);
  ASSERT_TRUE(Write(*store_, content).ok());
  {
    std::fstream file(FileOf(sha256), std::ios::in | std::ios::out | std::ios::binary);
    ASSERT_TRUE(file) << FileOf(sha256);
    file.seekp(15'000).put('!');
  }
  EXPECT_TRUE(absl::IsDataLoss(store_->Verify(sha256)));
  EXPECT_TRUE(absl::IsDataLoss(Load(*store_, sha256).status()));
  ASSERT_TRUE(Write(*store_, content).ok());
  EXPECT_TRUE(store_->Verify(sha256).ok());
}

TEST_F(S3ArtifactStoreTest, ALostAnswerToTheLastStepIsNoFailure) {
  const std::string content = Text(kPartBytes + 10);
  int lost = 0;
  fault_ = [&](const Request& request) {
    Reply reply = Forward(request);
    if (request.method == "POST" && absl::StrContains(request.target, "uploadId=") && lost++ == 0) {
      EXPECT_EQ(reply.status, 200);
      reply.cut_after = 0;
      reply.then = Reply::Then::kClose;
    }
    return reply;
  };
  const absl::Status stored = Write(*store_, content);
  EXPECT_TRUE(stored.ok()) << stored;
  EXPECT_EQ(lost, 2);
  EXPECT_TRUE(store_->Verify(Sha256Hex(content)).ok());
}

TEST_F(S3ArtifactStoreTest, AnOverloadedStorageIsAskedAgainAFewTimes) {
  int asked = 0;
  int refusals = 2;
  fault_ = [&](const Request& request) {
    ++asked;
    if (refusals-- > 0) return Reply{.status = 503, .body = "<Error><Code>SlowDown</Code></Error>"};
    return Forward(request);
  };
  EXPECT_FALSE(*store_->Contains(Sha256Hex("x")));
  EXPECT_EQ(asked, 3);
  refusals = 1000;
  asked = 0;
  EXPECT_TRUE(absl::IsUnavailable(store_->Contains(Sha256Hex("x")).status()));
  EXPECT_EQ(asked, 3);
  asked = 0;
  EXPECT_TRUE(absl::IsUnavailable(Write(*store_, "x")));
  EXPECT_EQ(asked, 5);
}

TEST_F(S3ArtifactStoreTest, AStorageThatIsAwayIsUnavailableUntilItIsBack) {
  const std::string content = Text(1000);
  ASSERT_TRUE(Write(*direct_, content).ok());
  VersityGateway::Shared()->Kill();
  const absl::Status away = direct_->Contains(Sha256Hex(content)).status();
  EXPECT_TRUE(absl::IsUnavailable(away)) << away;
  EXPECT_TRUE(absl::IsUnavailable(Write(*direct_, "other")));
  EXPECT_TRUE(absl::IsUnavailable(under_test_.Open().status()));
  const absl::Status back = VersityGateway::Shared()->StartProcess();
  ASSERT_TRUE(back.ok()) << back;
  EXPECT_EQ(*Load(*direct_, Sha256Hex(content)), content);
}

TEST_F(S3ArtifactStoreTest, SaysWhatIsWrongWithoutTheSecret) {
  S3ArtifactStoreOptions options = under_test_.options_;
  options.s3.credentials.secret_access_key = "a-secret-that-is-not-the-right-one";
  const absl::Status refused = OpenS3ArtifactStore(options).status();
  EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), Not(HasSubstr("a-secret")));
  options = under_test_.options_;
  options.location.bucket = "no-such-bucket";
  const absl::Status no_bucket = OpenS3ArtifactStore(options).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(no_bucket)) << no_bucket;
  EXPECT_THAT(std::string(no_bucket.message()), HasSubstr("no-such-bucket"));
}

TEST_F(S3ArtifactStoreTest, APrefixBelongsToOneJobStore) {
  S3ArtifactStoreOptions options = under_test_.options_;
  options.owner = "store-a";
  EXPECT_TRUE(OpenS3ArtifactStore(options).ok());
  EXPECT_TRUE(OpenS3ArtifactStore(options).ok()) << "servers of one store share it";
  options.owner = "store-b";
  const absl::Status refused = OpenS3ArtifactStore(options).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("store-a"));
  options.location.prefix += "/of-b";
  EXPECT_TRUE(OpenS3ArtifactStore(options).ok());
}

TEST_F(S3ArtifactStoreTest, ThereAreNoUrlsUnlessAskedFor) {
  EXPECT_FALSE(store_->MakeUrl(Sha256Hex("x")).has_value());
  EXPECT_FALSE(store_->MakeUploadUrl(Sha256Hex("x"), 1).has_value());
  S3ArtifactStoreOptions options = under_test_.options_;
  options.url_lifetime = absl::Minutes(5);
  const auto downloads = OpenS3ArtifactStore(options).value();
  EXPECT_TRUE(downloads->MakeUrl(Sha256Hex("x")).has_value());
  EXPECT_FALSE(downloads->MakeUploadUrl(Sha256Hex("x"), 1).has_value());
}

TEST_F(S3ArtifactStoreTest, AnUploadUrlTakesItsContentAndNothingElse) {
  S3ArtifactStoreOptions options = under_test_.options_;
  options.url_lifetime = absl::Minutes(5);
  options.upload_urls = true;
  const auto opened = OpenS3ArtifactStore(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  ArtifactStore& store = **opened;
  S3Client client(options.s3, options.location.bucket);
  EXPECT_TRUE(absl::IsNotFound(client.Head("p/upload-check").status())) << "what Open tried stays";
  EXPECT_FALSE(store.MakeUploadUrl(Sha256Hex("x"), (int64_t{5} << 30) + 1).has_value());

  const std::string content = Text(5'000);
  const std::string sha256 = Sha256Hex(content);
  const ArtifactUploadUrl made =
      store.MakeUploadUrl(sha256, static_cast<int64_t>(content.size())).value();
  const auto send = [&](const std::string& method, const std::string& url,
                        const std::map<std::string, std::string>& headers, absl::string_view body) {
    HttpRequest request{.method = method, .url = url};
    request.headers.assign(headers.begin(), headers.end());
    request.body = body;
    const auto response = http_.Send(request);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.value_or(HttpResponse()).status;
  };
  std::string changed = content;
  changed[2'500] ^= 1;
  const auto expect_refusals = [&] {
    std::map<std::string, std::string> of_changed = made.headers;
    of_changed["x-amz-checksum-sha256"] =
        absl::Base64Escape(absl::HexStringToBytes(Sha256Hex(changed)));
    std::map<std::string, std::string> public_read = made.headers;
    public_read["x-amz-acl"] = "public-read";
    EXPECT_EQ(send("PUT", made.url, made.headers, changed), 400);
    EXPECT_EQ(send("PUT", made.url, of_changed, changed), 403);
    EXPECT_EQ(send("PUT", made.url, {}, changed), 403);
    EXPECT_EQ(send("PUT", made.url, public_read, content), 403);
    EXPECT_EQ(send("PUT", made.url, made.headers, content + "x"), 403);
    EXPECT_EQ(send("GET", made.url, made.headers, ""), 403);
    EXPECT_EQ(send("DELETE", made.url, made.headers, ""), 403);
    EXPECT_EQ(send("PUT", absl::StrReplaceAll(made.url, {{sha256, Sha256Hex(changed)}}),
                   made.headers, content),
              403);
  };
  expect_refusals();
  EXPECT_FALSE(*store.Contains(sha256));
  EXPECT_EQ(send("PUT", made.url, made.headers, content), 200);
  EXPECT_TRUE(store.Verify(sha256).ok());
  expect_refusals();
  EXPECT_TRUE(store.Verify(sha256).ok()) << "what is stored was changed";
}

TEST_F(S3ArtifactStoreTest, AStorageThatTakesOtherUploadsThanWereSignedIsRefused) {
  options_.url_lifetime = absl::Minutes(5);
  options_.upload_urls = true;
  int answer = 200;
  fault_ = [&](const Request& request) {
    const bool presigned = absl::StrContains(request.target, "X-Amz-Signature");
    return presigned ? Reply{.status = answer} : Forward(request);
  };
  const absl::Status careless = OpenS3ArtifactStore(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(careless)) << careless;
  EXPECT_THAT(std::string(careless.message()), HasSubstr("takes another content"));
  EXPECT_THAT(std::string(careless.message()), Not(HasSubstr("X-Amz")));
  answer = 403;
  const absl::Status closed = OpenS3ArtifactStore(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(closed)) << closed;
  EXPECT_THAT(std::string(closed.message()), HasSubstr("does not take what was signed"));
  answer = 503;
  EXPECT_TRUE(absl::IsUnavailable(OpenS3ArtifactStore(options_).status()));
  options_.upload_urls = false;
  EXPECT_TRUE(OpenS3ArtifactStore(options_).ok());
}

TEST_F(S3ArtifactStoreTest, AUrlReadsItsArtifactAndDoesNothingElse) {
  SimulatedClock clock(absl::Now());
  S3ArtifactStoreOptions options = under_test_.options_;
  options.s3.clock = &clock;
  options.url_lifetime = absl::Minutes(5);
  const auto store = OpenS3ArtifactStore(options).value();
  const std::string content = Text(100'000);
  const std::string sha256 = Sha256Hex(content), other = Sha256Hex("other");
  ASSERT_TRUE(Write(*store, content).ok());
  ASSERT_TRUE(Write(*store, "other").ok());
  const ArtifactUrl made = store->MakeUrl(sha256).value();
  EXPECT_EQ(made.expire_time, clock.Now() + absl::Minutes(5));
  EXPECT_THAT(made.url, Not(HasSubstr(options.s3.credentials.secret_access_key)));

  const auto send = [&](const HttpRequest& request) {
    const auto response = http_.Send(request);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.value_or(HttpResponse());
  };
  EXPECT_EQ(send({.url = made.url}).body, content);
  HttpRequest rest{.url = made.url};
  rest.headers = {{"range", "bytes=99990-"}};
  const HttpResponse partial = send(rest);
  EXPECT_EQ(partial.status, 206);
  EXPECT_EQ(partial.body, content.substr(99'990));

  for (const char* method : {"PUT", "DELETE"}) {
    HttpRequest request{.method = method, .url = made.url};
    if (request.method == "PUT") request.body = "not what it says";
    EXPECT_EQ(send(request).status, 403) << method;
  }
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {sha256, other},
           {"X-Amz-Expires=300", "X-Amz-Expires=3000"},
           {"X-Amz-Signature=", "versionId=null&X-Amz-Signature="},
           {"X-Amz-Signature=", "X-Amz-Signature=0"}}) {
    const std::string changed = absl::StrReplaceAll(made.url, {{from, to}});
    ASSERT_NE(changed, made.url) << from;
    EXPECT_EQ(send({.url = changed}).status, 403) << to;
  }
  EXPECT_TRUE(store->Verify(sha256).ok());
}

TEST_F(S3ArtifactStoreTest, AUrlExpires) {
  // The storage's clock cannot be set, so this one was ten minutes ago.
  SimulatedClock clock(absl::Now() - absl::Minutes(10));
  S3ArtifactStoreOptions options = under_test_.options_;
  options.s3.clock = &clock;
  ASSERT_TRUE(Write(*direct_, "x").ok());
  for (const auto& [lifetime, status] :
       std::vector<std::pair<int, int>>{{5, 403}, {9, 403}, {20, 200}}) {
    options.url_lifetime = absl::Minutes(lifetime);
    const auto url = OpenS3ArtifactStore(options).value()->MakeUrl(Sha256Hex("x"));
    const auto response = http_.Send({.url = url.value().url});
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->status, status) << lifetime << " minutes";
  }
}

TEST_F(S3ArtifactStoreTest, ARemovedArtifactIsGoneFromABucketThatKeepsVersions) {
  const VersityGateway& storage = *VersityGateway::Shared();
  const absl::Status versioned = storage.KeepVersions(options_.location.bucket);
  ASSERT_TRUE(versioned.ok()) << versioned;
  // Twice, as two servers may: the first becomes an old version. What begins alike is another's.
  const std::string content = Text(100'000), sha256 = Sha256Hex(content);
  S3Client client(under_test_.options_.s3, options_.location.bucket);
  ASSERT_TRUE(client.Put("p/objects/" + sha256 + "0", "x").ok());
  ASSERT_TRUE(client.Put("p/objects/" + sha256 + "0", "y").ok());
  const int others = storage.OldVersionCount();
  ASSERT_GT(others, 0);
  ASSERT_TRUE(Write(*store_, content).ok());
  ASSERT_TRUE(Write(*store_, content).ok());
  ASSERT_GT(storage.OldVersionCount(), others);
  const absl::Status removed = store_->Remove(sha256);
  EXPECT_TRUE(removed.ok()) << removed;
  EXPECT_TRUE(absl::IsNotFound(store_->Describe(sha256).status()));
  EXPECT_EQ(storage.OldVersionCount(), others);
  EXPECT_FALSE(std::filesystem::exists(FileOf(sha256)));
  EXPECT_TRUE(client.Head("p/objects/" + sha256 + "0").ok());
}

TEST_F(S3ArtifactStoreTest, LongListsComeInPages) {
  // By the folder: a thousand requests would take their time.
  S3Client client(under_test_.options_.s3, options_.location.bucket);
  ASSERT_TRUE(Write(*direct_, "x").ok());
  for (int i = 0; i < 1'050; ++i) {
    std::ofstream(FileOf(Sha256Hex(absl::StrCat(i)))) << i;
  }
  int seen = 0;
  const absl::Status listed = direct_->List([&](const StoredArtifact&) {
    ++seen;
    return absl::OkStatus();
  });
  EXPECT_TRUE(listed.ok()) << listed;
  EXPECT_EQ(seen, 1'051);
}

}  // namespace
}  // namespace qpruner::server
