#include "client/job_client.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <thread>

#include "absl/synchronization/notification.h"
#include "base/durable_file.h"
#include "base/sha256.h"
#include "client/testing/fake_job_service.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "tests/testing/scripted_http_server.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

constexpr char kJob[] = "projects/default/jobs/example";

// Moves a simulated clock instead of sleeping, and remembers what was asked for.
class RecordingSleeper final : public Sleeper {
 public:
  explicit RecordingSleeper(SimulatedClock& clock) : clock_(clock) {}
  void SleepFor(absl::Duration duration, Cancellation*) override {
    clock_.Advance(duration);
    slept.push_back(duration);
  }
  std::vector<absl::Duration> slept;

 private:
  SimulatedClock& clock_;
};

class JobClientTest : public ::testing::Test {
 protected:
  JobClientTest()
      : sleeper_(clock_), client_(OpenChannel(server_.address()), {}, clock_, sleeper_) {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~JobClientTest() override { std::filesystem::remove_all(folder_); }

  // The sequences that a watch delivers.
  std::vector<int64_t> Watch(int64_t after, absl::Status* status) {
    std::vector<int64_t> seen;
    *status = client_.WatchJob(kJob, after, [&](const v1::JobEvent& event) {
      seen.push_back(event.sequence());
      return true;
    });
    return seen;
  }
  static std::vector<int64_t> Sequence(int64_t first, int64_t last) {
    std::vector<int64_t> all(static_cast<size_t>(last - first + 1));
    std::iota(all.begin(), all.end(), first);
    return all;
  }
  v1::Artifact OnlyArtifact() { return client_.ListArtifacts(kJob)->front(); }
  std::vector<std::string> FilesIn(const std::filesystem::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  FakeJobServer server_;
  SimulatedClock clock_;
  RecordingSleeper sleeper_;
  JobClient client_;
  std::filesystem::path folder_;
  const int64_t last_ = MakeExampleJob().job.last_event_sequence();
};

const grpc::Status kUnavailable(grpc::StatusCode::UNAVAILABLE, "down for the test");

TEST_F(JobClientTest, RepeatsReadsWithGrowingDelays) {
  server_.service().Fail("GetJob", 4, kUnavailable);
  absl::StatusOr<v1::CompressionJob> job = client_.GetJob(kJob);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->name(), kJob);
  EXPECT_EQ(server_.service().calls("GetJob"), 5);
  ASSERT_THAT(sleeper_.slept, SizeIs(4));
  for (int i = 0; i < 4; ++i) {
    const absl::Duration step = absl::Milliseconds(100) * (1 << i);
    EXPECT_THAT(sleeper_.slept[i], AllOf(Ge(step / 2), Le(step)));
  }
}

TEST_F(JobClientTest, GivesUpWhenPatienceEnds) {
  server_.service().Fail("GetJob", 1000, kUnavailable);
  EXPECT_EQ(client_.GetJob(kJob).status().code(), absl::StatusCode::kUnavailable);
  const absl::Duration slept =
      std::accumulate(sleeper_.slept.begin(), sleeper_.slept.end(), absl::ZeroDuration());
  EXPECT_LE(slept, absl::Seconds(5));
  EXPECT_GE(slept, absl::Milliseconds(1800));  // The next step would have been 3.2 s at most.
}

TEST_F(JobClientTest, WaitsAsLongAsAServerWhoseStoreIsAwaySays) {
  const grpc::Status away =
      ToGrpcStatus(WithRetryInfo(absl::UnavailableError("The store is away"), absl::Seconds(1)));
  server_.service().Fail("GetJob", 2, away);
  EXPECT_TRUE(client_.GetJob(kJob).ok());
  EXPECT_THAT(sleeper_.slept, SizeIs(2));
  EXPECT_THAT(sleeper_.slept, testing::Each(testing::Ge(absl::Seconds(1))));
  // No longer than without a word, and never what is not safe to repeat.
  server_.service().Fail("GetJob", 1000, away);
  sleeper_.slept.clear();
  EXPECT_EQ(client_.GetJob(kJob).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(sleeper_.slept, SizeIs(testing::Le(5)));
  server_.service().Fail("DeleteJob", 1, away);
  EXPECT_EQ(client_.DeleteJob(kJob).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server_.service().calls("DeleteJob"), 1);
}

TEST_F(JobClientTest, RepeatsCreateUnderOneRequestId) {
  server_.service().Fail("CreateJob", 2, kUnavailable);
  ASSERT_TRUE(client_.CreateJob({}).ok());
  const std::vector<v1::CreateJobRequest> sent = server_.service().created();
  ASSERT_THAT(sent, SizeIs(3));
  EXPECT_THAT(sent[0].request_id(), SizeIs(32));
  EXPECT_EQ(sent[1].request_id(), sent[0].request_id());
  EXPECT_EQ(sent[2].request_id(), sent[0].request_id());
}

TEST_F(JobClientTest, NeverRepeatsDeleteNorOtherCodes) {
  server_.service().Fail("DeleteJob", 1, kUnavailable);
  EXPECT_EQ(client_.DeleteJob(kJob).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server_.service().calls("DeleteJob"), 1);
  for (const grpc::StatusCode code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::ABORTED,
                                      grpc::StatusCode::DEADLINE_EXCEEDED}) {
    server_.service().Fail("GetJob", 1, grpc::Status(code, "no"));
    EXPECT_EQ(static_cast<int>(client_.GetJob(kJob).status().code()), static_cast<int>(code));
  }
  EXPECT_EQ(server_.service().calls("GetJob"), 3);
  EXPECT_THAT(sleeper_.slept, SizeIs(0));
}

TEST_F(JobClientTest, ADownloadWaitsForItsTurn) {
  server_.service().AddArtifact("weights", "content");
  server_.service().Fail(
      "DownloadArtifact", 2,
      ToGrpcStatus(QuotaError("TOO_MANY_DOWNLOADS", "server", "many are open", absl::Seconds(1))));
  EXPECT_TRUE(client_.DownloadArtifact(OnlyArtifact(), (folder_ / "weights").string()).ok());
  EXPECT_EQ(server_.service().calls("DownloadArtifact"), 3);
}

TEST_F(JobClientTest, WaitsAsARefusalSays) {
  const auto refuse = [this](const char* method, int times, absl::Duration retry_after) {
    server_.service().Fail(
        method, times, ToGrpcStatus(QuotaError("QUEUE_FULL", "server", "it is full", retry_after)));
  };
  refuse("CreateJob", 2, absl::Seconds(10));
  ASSERT_TRUE(client_.CreateJob({}).ok());
  EXPECT_THAT(sleeper_.slept, ElementsAre(absl::Seconds(10), absl::Seconds(10)));
  const std::vector<v1::CreateJobRequest> sent = server_.service().created();
  ASSERT_THAT(sent, SizeIs(3));
  EXPECT_EQ(sent[2].request_id(), sent[0].request_id()) << "one job, however often it is asked";
  // Half a minute in all.
  sleeper_.slept.clear();
  refuse("CreateJob", 1000, absl::Seconds(10));
  const absl::Status given_up = client_.CreateJob({}).status();
  EXPECT_EQ(given_up.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(given_up), "QUEUE_FULL");
  EXPECT_THAT(sleeper_.slept, SizeIs(3));
}

TEST_F(JobClientTest, DoesNotWaitForWhatTakesLongerNorRepeatsWhatIsNotSafe) {
  server_.service().Fail("CreateJob", 1,
                         ToGrpcStatus(QuotaError("PROJECT_SPACE_USED_UP", "projects/default",
                                                 "no space", absl::Minutes(5))));
  EXPECT_EQ(client_.CreateJob({}).status().code(), absl::StatusCode::kResourceExhausted);
  // Without a hint there is nothing to wait for.
  server_.service().Fail("GetJob", 1, grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "no"));
  EXPECT_EQ(client_.GetJob(kJob).status().code(), absl::StatusCode::kResourceExhausted);
  server_.service().Fail(
      "DeleteJob", 1,
      ToGrpcStatus(QuotaError("TOO_MANY_READS", "server", "busy", absl::Seconds(1))));
  EXPECT_EQ(client_.DeleteJob(kJob).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(sleeper_.slept, SizeIs(0));
}

TEST_F(JobClientTest, AWaitForABusyServerCanBeCancelled) {
  server_.service().Fail(
      "CreateJob", 1000,
      ToGrpcStatus(QuotaError("QUEUE_FULL", "server", "it is full", absl::Seconds(10))));
  Cancellation cancellation;
  cancellation.Cancel();
  const absl::Status status = client_.CreateJob({}, &cancellation).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(std::string(status.message()), HasSubstr("it is full"));
  EXPECT_EQ(server_.service().calls("CreateJob"), 1);
}

TEST_F(JobClientTest, AWatchThatWasTooSlowGoesOn) {
  server_.service().AddFault("WatchJob", {.after_messages = 3});
  absl::Status status;
  int seen = 0;
  status = client_.WatchJob(kJob, 0, [&](const v1::JobEvent&) {
    if (++seen == 3) {
      server_.service().Fail(
          "WatchJob", 1,
          grpc::Status(grpc::StatusCode::UNAVAILABLE, "WATCHER_TOO_SLOW: no event was taken"));
      server_.service().Fail(
          "WatchJob", 1,
          ToGrpcStatus(QuotaError("TOO_MANY_WATCHES", "server", "many", absl::Seconds(1))));
    }
    return true;
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(seen, last_);
  EXPECT_EQ(server_.service().calls("WatchJob"), 4);
}

TEST_F(JobClientTest, ErrorsKeepTheirDetails) {
  v1::CreateJobRequest request;
  request.mutable_job()->mutable_spec()->mutable_pruning()->set_ratio(1.5);
  const absl::Status status = client_.CreateJob(request).status();
  ASSERT_THAT(FieldViolations(status), SizeIs(1));
  EXPECT_EQ(FieldViolations(status)[0].field, "job.spec.pruning.ratio");
  EXPECT_EQ(client_.GetJob("projects/default/jobs/other").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(JobClientTest, ListsAllPagesOfTrials) {
  absl::StatusOr<std::vector<v1::Trial>> trials = client_.ListTrials(kJob);
  ASSERT_TRUE(trials.ok()) << trials.status();
  ASSERT_THAT(*trials, SizeIs(MakeExampleJob().trials.size()));
  for (size_t i = 0; i < trials->size(); ++i) EXPECT_EQ((*trials)[i].index(), int(i) + 1);
}

TEST_F(JobClientTest, WatchDeliversEachEventOnceAcrossBreaks) {
  // Breaks at the start, in the middle, twice without progress, and with a repeated event after it.
  server_.service().AddFault("WatchJob", {.after_messages = 0});
  server_.service().AddFault("WatchJob", {.after_messages = 7});
  server_.service().AddFault("WatchJob", {.after_messages = 0});
  server_.service().AddFault("WatchJob", {.after_messages = 3, .repeat = true});
  server_.service().AddFault("WatchJob", {.after_messages = 5, .code = grpc::StatusCode::OK});
  absl::Status status;
  EXPECT_EQ(Watch(0, &status), Sequence(1, last_));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(server_.service().calls("WatchJob"), 6);
  EXPECT_THAT(sleeper_.slept, SizeIs(5));
}

TEST_F(JobClientTest, WatchResumesAfterASequence) {
  absl::Status status;
  EXPECT_EQ(Watch(10, &status), Sequence(11, last_));
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(JobClientTest, WatchFetchesAnEventThatWasLeftOut) {
  server_.service().AddFault("WatchJob", {.after_messages = 4, .damage = true});
  absl::Status status;
  EXPECT_EQ(Watch(0, &status), Sequence(1, last_));
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(JobClientTest, WatchFailsWhenAnEventIsGone) {
  server_.service().AddFault("WatchJob", {.after_messages = 4, .damage = true});
  server_.service().AddFault("WatchJob", {.after_messages = 0, .damage = true});
  absl::Status status;
  EXPECT_EQ(Watch(0, &status), Sequence(1, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("event 5"));
}

TEST_F(JobClientTest, WatchOutlastsARestartButNotForEver) {
  server_.service().AddFault("WatchJob", {.after_messages = 3});
  server_.service().Fail("WatchJob", 0, kUnavailable);
  // Once it has begun, minutes of failure are borne.
  absl::Status status;
  int seen = 0;
  status = client_.WatchJob(kJob, 0, [&](const v1::JobEvent&) {
    if (++seen == 3) server_.service().Fail("WatchJob", 60, kUnavailable);
    return true;
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(seen, last_);
  // Without end, it gives up.
  server_.service().Fail("WatchJob", 10000, kUnavailable);
  EXPECT_EQ(Watch(0, &status).size(), 0u);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(JobClientTest, WatchEndsWhenTheCallerHasSeenEnough) {
  int seen = 0;
  EXPECT_TRUE(client_.WatchJob(kJob, 0, [&](const v1::JobEvent&) { return ++seen < 3; }).ok());
  EXPECT_EQ(seen, 3);
}

TEST_F(JobClientTest, WatchCanBeCancelledWhileItWaits) {
  server_.service().HoldAfter(5);
  Cancellation cancellation;
  absl::Status status;
  absl::Notification five;
  int seen = 0;
  std::thread watch([&] {
    status = client_.WatchJob(
        kJob, 0,
        [&](const v1::JobEvent&) {
          if (++seen == 5) five.Notify();
          return true;
        },
        &cancellation);
  });
  five.WaitForNotification();
  cancellation.Cancel();
  watch.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(seen, 5);
}

TEST_F(JobClientTest, WatchOfAnUnknownJobIsNotFound) {
  EXPECT_EQ(
      client_.WatchJob("projects/default/jobs/other", 0, [](const auto&) { return true; }).code(),
      absl::StatusCode::kNotFound);
}

std::string SomeBytes(size_t count) {
  std::string bytes(count, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

TEST_F(JobClientTest, DownloadsIntoNewFoldersAndLeavesNothingElse) {
  const std::string content = SomeBytes(12'345);
  server_.service().AddArtifact("model/model.safetensors", content);
  const std::string path = (folder_ / "a/b/model.safetensors").string();
  std::vector<int64_t> progress;
  ASSERT_TRUE(
      client_
          .DownloadArtifact(OnlyArtifact(), path, [&](int64_t bytes) { progress.push_back(bytes); })
          .ok());
  EXPECT_EQ(ReadFile(path, 1 << 20).value(), content);
  EXPECT_THAT(FilesIn(folder_ / "a/b"), ElementsAre("model.safetensors"));
  EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
  EXPECT_EQ(progress.back(), 12'345);
}

TEST_F(JobClientTest, DownloadResumesByOffset) {
  const std::string content = SomeBytes(20'000);
  server_.service().AddArtifact("weights", content);
  server_.service().AddFault("DownloadArtifact", {.after_messages = 3});
  server_.service().AddFault("DownloadArtifact", {.after_messages = 0});
  server_.service().AddFault("DownloadArtifact",
                             {.after_messages = 10, .code = grpc::StatusCode::OK});
  const std::string path = (folder_ / "weights").string();
  ASSERT_TRUE(client_.DownloadArtifact(OnlyArtifact(), path).ok());
  EXPECT_EQ(ReadFile(path, 1 << 20).value(), content);
  EXPECT_EQ(server_.service().calls("DownloadArtifact"), 4);
  EXPECT_EQ(server_.service().bytes_sent(), 20'000);  // Nothing twice.
}

TEST_F(JobClientTest, DownloadTakesUpWhatAnEarlierProcessLeft) {
  const std::string content = SomeBytes(20'000);
  server_.service().AddArtifact("weights", content);
  server_.service().AddFault("DownloadArtifact",
                             {.after_messages = 8, .code = grpc::StatusCode::INTERNAL});
  const std::string path = (folder_ / "weights").string();
  EXPECT_EQ(client_.DownloadArtifact(OnlyArtifact(), path).code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_THAT(FilesIn(folder_), SizeIs(1));
  ASSERT_TRUE(client_.DownloadArtifact(OnlyArtifact(), path).ok());
  EXPECT_EQ(ReadFile(path, 1 << 20).value(), content);
  EXPECT_EQ(server_.service().bytes_sent(), 20'000);
  EXPECT_THAT(FilesIn(folder_), ElementsAre("weights"));
}

TEST_F(JobClientTest, DownloadDoesNotTrustWhatAnEarlierProcessLeft) {
  const std::string content = SomeBytes(3'000);
  server_.service().AddArtifact("weights", content);
  const v1::Artifact artifact = OnlyArtifact();
  const std::string path = (folder_ / "weights").string();
  const std::string partial = path + "." + artifact.sha256().substr(0, 16) + ".partial";
  for (const size_t size : {size_t{1'000}, content.size(), content.size() + 1}) {
    std::filesystem::remove(path);
    ASSERT_TRUE(WriteFileDurably(partial, std::string(size, 'x')).ok());
    const absl::Status status = client_.DownloadArtifact(artifact, path);
    ASSERT_TRUE(status.ok()) << size << ": " << status;
    EXPECT_EQ(ReadFile(path, 1 << 20).value(), content);
  }
}

TEST_F(JobClientTest, DownloadRefusesDamagedBytes) {
  server_.service().AddArtifact("weights", SomeBytes(5'000));
  server_.service().AddFault("DownloadArtifact", {.after_messages = 2, .damage = true});
  const std::string path = (folder_ / "weights").string();
  const absl::Status status = client_.DownloadArtifact(OnlyArtifact(), path);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("artifacts/weights"));
  EXPECT_THAT(FilesIn(folder_), SizeIs(0));
}

TEST_F(JobClientTest, DownloadRefusesMoreBytesThanAnnounced) {
  server_.service().AddArtifact("weights", SomeBytes(5'000));
  v1::Artifact artifact = OnlyArtifact();
  artifact.set_size_bytes(1'500);
  EXPECT_EQ(client_.DownloadArtifact(artifact, (folder_ / "weights").string()).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_THAT(FilesIn(folder_), SizeIs(0));
}

TEST_F(JobClientTest, DownloadKeepsAFileThatAgrees) {
  const std::string content = SomeBytes(5'000);
  server_.service().AddArtifact("weights", content);
  const std::string path = (folder_ / "weights").string();
  ASSERT_TRUE(WriteFileDurably(path, content).ok());
  ASSERT_TRUE(client_.DownloadArtifact(OnlyArtifact(), path).ok());
  EXPECT_EQ(server_.service().calls("DownloadArtifact"), 0);
  // One that does not is replaced.
  std::string other = content;
  other[17] ^= 1;
  ASSERT_TRUE(WriteFileDurably(path, other).ok());
  ASSERT_TRUE(client_.DownloadArtifact(OnlyArtifact(), path).ok());
  EXPECT_EQ(ReadFile(path, 1 << 20).value(), content);
}

// A server that gives URLs of a storage.
class DirectDownloadTest : public JobClientTest {
 protected:
  using Reply = ScriptedHttpServer::Reply;
  using Request = ScriptedHttpServer::Request;

  DirectDownloadTest() {
    server_.service().AddArtifact("weights", content_);
    server_.service().GiveUrls(storage_.url());
  }
  Reply Rest(const Request& request) const { return ScriptedHttpServer::RestOf(content_, request); }
  absl::Status Download(Cancellation* cancellation = nullptr) {
    return client_.DownloadArtifact(
        OnlyArtifact(), path_,
        [this](int64_t bytes) {
          progress_ = bytes;
          if (on_progress_) on_progress_();
        },
        cancellation);
  }
  void ExpectDownloaded(const absl::Status& status) {
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(ReadFile(path_, 8 << 20).value(), content_);
    EXPECT_EQ(progress_, static_cast<int64_t>(content_.size()));
    EXPECT_THAT(FilesIn(folder_), ElementsAre("weights"));
    EXPECT_THAT(sleeper_.slept, SizeIs(0));
  }

  std::string content_ = SomeBytes(20'000);
  const std::string path_ = (folder_ / "weights").string();
  std::function<Reply(const Request&)> answer_ = [this](const Request& r) { return Rest(r); };
  ScriptedHttpServer storage_{[this](const Request& request) { return answer_(request); }};
  int64_t progress_ = 0;
  std::function<void()> on_progress_;
};

TEST_F(DirectDownloadTest, BytesComeFromTheStorageAndGoOnWhereTheyBrokeOff) {
  // A URL that brings less than a MiB is not followed by another.
  content_ = SomeBytes(3 << 20);
  server_.service().AddArtifact("weights", content_);
  int requests = 0;
  answer_ = [&](const Request& request) {
    Reply reply = Rest(request);
    if (++requests == 1) {
      reply.cut_after = 2 << 20;
      reply.then = Reply::Then::kClose;
    }
    return reply;
  };
  ExpectDownloaded(Download());
  EXPECT_EQ(requests, 2);
  EXPECT_EQ(server_.service().bytes_sent(), 0);
}

TEST_F(DirectDownloadTest, WhatTheStorageRefusesComesThroughTheServer) {
  answer_ = [](const Request&) { return Reply{.status = 403}; };
  ExpectDownloaded(Download());
  EXPECT_EQ(server_.service().bytes_sent(), static_cast<int64_t>(content_.size()));
  EXPECT_THAT(storage_.log(), SizeIs(1));
}

TEST_F(DirectDownloadTest, AWrongByteOfTheStorageIsNoticedAndTheServerAsked) {
  answer_ = [&](const Request& request) {
    Reply reply = Rest(request);
    reply.body[10'000] ^= 1;
    return reply;
  };
  ExpectDownloaded(Download());
  EXPECT_EQ(server_.service().bytes_sent(), static_cast<int64_t>(content_.size()));
}

TEST_F(DirectDownloadTest, AFailureOfTheServerDoesNotShowTheUrl) {
  answer_ = [&](const Request&) {
    server_.service().Fail("DownloadArtifact", 1,
                           grpc::Status(grpc::StatusCode::NOT_FOUND, "deleted meanwhile"));
    return Reply{.status = 403};
  };
  const absl::Status status = Download();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(status.ToString(), ::testing::Not(HasSubstr("s3cr3t")));
}

TEST_F(DirectDownloadTest, CancelEndsATransferFromASilentStorage) {
  answer_ = [&](const Request& request) {
    Reply reply = Rest(request);
    reply.cut_after = 1'000;
    reply.then = Reply::Then::kStall;
    return reply;
  };
  Cancellation cancellation;
  on_progress_ = [&] { cancellation.Cancel(); };
  EXPECT_TRUE(absl::IsCancelled(Download(&cancellation)));
}

TEST_F(JobClientTest, DownloadsAnEmptyArtifact) {
  server_.service().AddArtifact("empty", "");
  const std::string path = (folder_ / "empty").string();
  ASSERT_TRUE(client_.DownloadArtifact(OnlyArtifact(), path).ok());
  EXPECT_EQ(std::filesystem::file_size(path), 0u);
}

TEST(JobClientWithoutServerTest, IsUnavailable) {
  SimulatedClock clock;
  RecordingSleeper sleeper(clock);
  JobClient client(OpenChannel("unix:/nonexistent/socket"), {}, clock, sleeper);
  EXPECT_EQ(client.ListCapabilities().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace qpruner
