#include "worker/worker_loop.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/status_codec.h"
#include "tests/testing/scripted_http_server.h"
#include "tests/testing/simulated_clock.h"
#include "worker/testing/fake_worker_server.h"

namespace qpruner::worker {
namespace {

namespace fs = std::filesystem;
using internal::v1::ArtifactRef;
using internal::v1::CompleteTaskRequest;
using internal::v1::HeartbeatRequest;
using internal::v1::HeartbeatResponse;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;

absl::StatusCode CodeOf(const CompleteTaskRequest& completion) {
  return static_cast<absl::StatusCode>(completion.error().code());
}

std::vector<std::string> PathsOf(const internal::v1::SaveCheckpointRequest& request) {
  std::vector<std::string> paths;
  for (const ArtifactRef& ref : request.ref()) paths.push_back(ref.path());
  return paths;
}

// A process of which no one but its parent need know that it ended: also true of a zombie.
class Process {
 public:
  explicit Process(pid_t pid) : fd_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) {}
  ~Process() {
    if (fd_ >= 0) close(fd_);
  }
  bool EndsWithin(absl::Duration limit) {
    if (fd_ < 0) return true;
    pollfd entry{.fd = fd_, .events = POLLIN, .revents = 0};
    return poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(limit))) == 1;
  }

 private:
  const int fd_;
};

class WorkerLoopTest : public ::testing::Test {
 protected:
  WorkerLoopTest() {
    char pattern[] = "/tmp/qpruner_worker_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    options_.worker = "w1";
    options_.incarnation = "i1";
    options_.version = "1.2.3";
    options_.data_dir = folder_.string();
    options_.engine.argv = {QPRUNER_SCRIPTED_ENGINE};
    options_.acquire_wait = absl::Milliseconds(50);
    options_.reconnect = {.initial = absl::Milliseconds(1), .maximum = absl::Milliseconds(5)};
  }
  ~WorkerLoopTest() override {
    Stop().IgnoreError();
    fs::remove_all(folder_);
  }

  void Start() {
    thread_ = std::thread([this] {
      auto loop = WorkerLoop::Create(options_, server_.stub(), clock_);
      ASSERT_TRUE(loop.ok()) << loop.status();
      result_ = (*loop)->Run(drain_.get_token());
    });
  }
  absl::Status Stop() {
    drain_.request_stop();
    if (thread_.joinable()) thread_.join();
    return result_;
  }
  // Until it ends by itself.
  absl::Status Wait() {
    thread_.join();
    return result_;
  }
  // Puts a file into the output folder that the script waits for.
  void TellEngine(const std::string& name) {
    server_.WaitForCalls("AcquireTask", 1);
    std::ofstream(folder_ / "task/outputs" / name) << "";
  }
  // The engine's and its child's process, once the script "hang" runs.
  std::pair<pid_t, pid_t> WaitForHang() {
    const HeartbeatRequest heartbeat =
        server_.WaitForHeartbeat([](const HeartbeatRequest& request) {
          return request.message().find(' ') != std::string::npos;
        });
    std::istringstream text(heartbeat.message());
    pid_t engine = 0, grandchild = 0;
    text >> engine >> grandchild;
    EXPECT_GT(engine, 0);
    EXPECT_GT(grandchild, 0);
    return {engine, grandchild};
  }

  FakeWorkerServer server_;
  SimulatedClock clock_;
  fs::path folder_;
  WorkerLoop::Options options_;
  std::stop_source drain_;
  std::thread thread_;
  absl::Status result_;
};

TEST_F(WorkerLoopTest, BringsTheEngineAModelThatOnlyTheAgentReaches) {
  const std::string commit(40, 'c');
  ScriptedHttpServer hub([&](const ScriptedHttpServer::Request& request) {
    if (request.target.find("/api/") == 0) {
      return ScriptedHttpServer::Reply{
          .body = absl::StrCat(R"({"sha": ")", commit,
                               R"(", "siblings": [{"rfilename": "config.json", "size": 2,
                 "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}, {"rfilename":
                 "model.safetensors", "size": 3, "lfs": {"sha256": ")",
                               Sha256Hex("abc"), R"("}}]})")};
    }
    return ScriptedHttpServer::Reply{.body = request.target.ends_with("json") ? "{}" : "abc"};
  });
  options_.model_sources.hub = HubOptions{.endpoint = hub.url()};
  server_.QueuePrepare("hf://org/tiny@main");
  Start();
  const CompleteTaskRequest done = server_.WaitForCompletion();
  ASSERT_TRUE(done.has_result()) << done.error().message();
  EXPECT_THAT(done.result().prepare().notes(), ElementsAre("config.json", "model.safetensors"));
  EXPECT_EQ(done.result().prepare().resolved_model_uri(), "hf://org/tiny@" + commit);
}

TEST_F(WorkerLoopTest, FilesOutsideOfItsRootsEndTheTask) {
  options_.model_roots = {"/nowhere"};
  server_.QueuePrepare("file:///etc");
  Start();
  const CompleteTaskRequest done = server_.WaitForCompletion();
  EXPECT_EQ(CodeOf(done), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(done.error().message(), HasSubstr("--model-root /nowhere"));
}

TEST_F(WorkerLoopTest, RegistersWithTheEnginesDevice) {
  Start();
  server_.WaitForCalls("AcquireTask", 1);
  EXPECT_TRUE(Stop().ok());
  ASSERT_EQ(server_.registrations().size(), 1u);
  const auto registration = server_.registrations()[0];
  EXPECT_EQ(registration.worker(), "w1");
  EXPECT_EQ(registration.incarnation(), "i1");
  EXPECT_EQ(registration.device(), "scripted");
  EXPECT_EQ(registration.device_memory_bytes(), 123);
  EXPECT_EQ(registration.version(), "1.2.3");
}

TEST_F(WorkerLoopTest, AnEngineThatCannotStartEndsTheWorker) {
  options_.engine.argv = {"/nonexistent/engine"};
  Start();
  thread_.join();
  EXPECT_EQ(result_.code(), absl::StatusCode::kNotFound) << result_;
}

TEST_F(WorkerLoopTest, AnEngineThatEndsAtOnceIsReportedWithItsStatus) {
  options_.engine.argv = {QPRUNER_SCRIPTED_ENGINE, "--mute"};
  Start();
  thread_.join();
  EXPECT_THAT(std::string(result_.message()), HasSubstr("exited with status 1"));
}

TEST_F(WorkerLoopTest, TheDataFolderBelongsToOneWorker) {
  Start();
  server_.WaitForCalls("AcquireTask", 1);
  const auto second = WorkerLoop::Create(options_, server_.stub(), clock_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
}

TEST_F(WorkerLoopTest, BringsInputsToTheEngineAndOutputsToTheServer) {
  const ArtifactRef a = server_.Store("prepared/a.bin", std::string(100000, 'a'));
  const ArtifactRef empty = server_.Store("prepared/sub/empty", "");
  server_.Queue("copy", "projects/p/jobs/j", {a, empty});
  Start();
  const CompleteTaskRequest completion = server_.WaitForCompletion();
  ASSERT_TRUE(completion.has_result()) << completion.DebugString();
  EXPECT_EQ(completion.lease().token(), "token-1");
  EXPECT_THAT(server_.uploads(), ElementsAre(Pair("copy/prepared/a.bin", std::string(100000, 'a')),
                                             Pair("copy/prepared/sub/empty", "")));
  // Nothing of the task is left but the cache.
  EXPECT_TRUE(Stop().ok());
  EXPECT_TRUE(fs::is_empty(folder_ / "task/inputs") && fs::is_empty(folder_ / "task/outputs"));
}

TEST_F(WorkerLoopTest, TheEngineKnowsNoSecretOfTheEnvironment) {
  setenv("AWS_SECRET_ACCESS_KEY", "geheim", 1);
  setenv("HF_TOKEN", "geheim", 1);
  setenv("OMP_NUM_THREADS", "1", 1);
  server_.Queue("environment");
  Start();
  const auto notes = server_.WaitForCompletion().result().prepare().notes();
  EXPECT_THAT(notes, Not(Contains(HasSubstr("geheim"))));
  EXPECT_THAT(notes, Contains("OMP_NUM_THREADS=1"));
  EXPECT_THAT(notes, Contains(absl::StrCat("TMPDIR=", (folder_ / "task/scratch").string())));
  unsetenv("AWS_SECRET_ACCESS_KEY");
  unsetenv("HF_TOKEN");
  unsetenv("OMP_NUM_THREADS");
}

TEST_F(WorkerLoopTest, TasksOfOneJobShareEngineAndCache) {
  const ArtifactRef a = server_.Store("a", "content");
  server_.Queue("copy", "projects/p/jobs/j", {a});
  server_.Queue("copy", "projects/p/jobs/j", {a});
  server_.Queue("copy", "projects/p/jobs/other", {a});
  Start();
  const auto first = server_.WaitForCompletion(1).result();
  const auto second = server_.WaitForCompletion(2).result();
  const auto other = server_.WaitForCompletion(3).result();
  EXPECT_EQ(first.use().peak_host_memory_bytes(), second.use().peak_host_memory_bytes());
  EXPECT_EQ(second.trial().selection().token_count(), 2);
  EXPECT_NE(other.use().peak_host_memory_bytes(), first.use().peak_host_memory_bytes());
  EXPECT_EQ(server_.calls("FetchArtifact"), 1);
}

TEST_F(WorkerLoopTest, AnEngineThatLostItsDeviceGetsNoOtherTask) {
  server_.Queue("copy");
  server_.Queue("device lost");
  server_.Queue("copy");
  Start();
  const auto first = server_.WaitForCompletion(1).result();
  const CompleteTaskRequest lost = server_.WaitForCompletion(2);
  EXPECT_EQ(CodeOf(lost), absl::StatusCode::kInternal);
  EXPECT_EQ(ErrorReason(FromRpcStatus(lost.error())), "DEVICE_LOST");
  const auto next = server_.WaitForCompletion(3).result();
  EXPECT_NE(next.use().peak_host_memory_bytes(), first.use().peak_host_memory_bytes());
}

TEST_F(WorkerLoopTest, ACheckpointIsSavedWholeAndEachContentUploadedOnce) {
  server_.Queue("checkpoints");
  Start();
  server_.WaitForCalls("SaveCheckpoint", 1);
  TellEngine("go-a");
  server_.WaitForCalls("SaveCheckpoint", 2);
  TellEngine("go-b");
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  const auto saved = server_.checkpoints();
  ASSERT_EQ(saved.size(), 2u);
  EXPECT_EQ(saved[0].lease().token(), "token-1");
  EXPECT_THAT(PathsOf(saved[0]),
              ElementsAre("checkpoint/outputs/prepared/a", "checkpoint/after-a"));
  EXPECT_THAT(PathsOf(saved[1]),
              ElementsAre("checkpoint/outputs/prepared/a", "checkpoint/outputs/prepared/b",
                          "checkpoint/after-b"));
  EXPECT_EQ(saved[1].ref(1).sha256(), Sha256Hex("b"));
  EXPECT_THAT(
      server_.uploads(),
      ElementsAre(Pair("checkpoint/after-a", "after a"), Pair("checkpoint/after-b", "after b"),
                  Pair("prepared/a", "a"), Pair("prepared/b", "b"), Pair("prepared/c", "c")));
  EXPECT_EQ(server_.calls("UploadArtifact"), 5);
  // Outputs that were saved need not be fetched by an attempt that follows here.
  EXPECT_TRUE(fs::exists(folder_ / "cache" / Sha256Hex("b")));
  EXPECT_FALSE(fs::exists(folder_ / "cache" / Sha256Hex("after b")));
}

TEST_F(WorkerLoopTest, WhatACheckpointBroughtIsNotUploadedAgain) {
  const ArtifactRef a = server_.Store("checkpoint/outputs/prepared/a", "a");
  const ArtifactRef state = server_.Store("checkpoint/after-a", "after a");
  // Outputs that are like another input are too rare to be looked for.
  const ArtifactRef c = server_.Store("source/c", "c");
  server_.Queue("checkpoints", "projects/p/jobs/j", {a, state, c});
  Start();
  server_.WaitForCalls("SaveCheckpoint", 1);
  TellEngine("go-a");
  server_.WaitForCalls("SaveCheckpoint", 2);
  TellEngine("go-b");
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_THAT(server_.uploads(), ElementsAre(Pair("checkpoint/after-b", "after b"),
                                             Pair("prepared/b", "b"), Pair("prepared/c", "c")));
}

// The server may have removed what has left the checkpoint.
TEST_F(WorkerLoopTest, WhatHasLeftTheCheckpointIsUploadedAgain) {
  const ArtifactRef c = server_.Store("checkpoint/outputs/prepared/c", "c");
  server_.Queue("checkpoints", "projects/p/jobs/j", {c});
  Start();
  server_.WaitForCalls("SaveCheckpoint", 1);
  TellEngine("go-a");
  TellEngine("go-b");
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("prepared/c"), "c");
}

TEST_F(WorkerLoopTest, ACheckpointThatIsNotSavedCostsNothingElse) {
  // Neither the first one's upload, nor the second one's call.
  server_.FailNext("UploadArtifact", {grpc::StatusCode::UNAVAILABLE});
  server_.FailNext("SaveCheckpoint", {grpc::StatusCode::UNAVAILABLE});
  server_.Queue("checkpoints");
  Start();
  server_.WaitForCalls("UploadArtifact", 1);
  TellEngine("go-a");
  server_.WaitForCalls("SaveCheckpoint", 1);
  TellEngine("go-b");
  const CompleteTaskRequest done = server_.WaitForCompletion();
  ASSERT_TRUE(done.has_result());
  EXPECT_EQ(done.result().outputs_size(), 3);
  EXPECT_TRUE(server_.checkpoints().empty());
  EXPECT_EQ(server_.calls("SaveCheckpoint"), 1);
  EXPECT_EQ(server_.calls("UploadArtifact"), 5) << "one failed; a, b, c and after-b";
}

TEST_F(WorkerLoopTest, WhatADeadEngineHadToldIsSavedYet) {
  server_.Queue("checkpoints");
  Start();
  TellEngine("die-b");
  TellEngine("go-a");
  EXPECT_EQ(CodeOf(server_.WaitForCompletion()), absl::StatusCode::kUnavailable);
  const auto saved = server_.checkpoints();
  ASSERT_FALSE(saved.empty());
  EXPECT_EQ(saved.back().ref(1).path(), "checkpoint/outputs/prepared/b");
}

TEST_F(WorkerLoopTest, TheEnginesThreadsAreToldToSleepWhileTheyWait) {
  server_.Queue("copy");
  Start();
  const int64_t engine = server_.WaitForCompletion().result().use().peak_host_memory_bytes();
  std::ifstream file("/proc/" + std::to_string(engine) + "/environ");
  const std::string environment(std::istreambuf_iterator<char>(file), {});
  EXPECT_THAT(environment, HasSubstr("OMP_WAIT_POLICY="));
}

TEST_F(WorkerLoopTest, WhatATaskMadeNeedNotBeFetched) {
  const ArtifactRef a = server_.Store("a", "content");
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  const auto result = server_.WaitForCompletion(1).result();
  server_.Queue("copy", "projects/p/jobs/j", {result.outputs(0)});
  ASSERT_TRUE(server_.WaitForCompletion(2).has_result());
  EXPECT_EQ(server_.calls("FetchArtifact"), 1);
  EXPECT_EQ(server_.uploads().at("copy/copy/a"), "content");
}

TEST_F(WorkerLoopTest, RelaysProgressAndTellsEachLogLineOnce) {
  server_.Queue("progress");
  Start();
  server_.WaitForHeartbeat([](const HeartbeatRequest& request) {
    return request.fraction() == 0.5 && request.message() == "half way";
  });
  // Heartbeats go on while the engine works.
  server_.WaitForCalls("Heartbeat", server_.calls("Heartbeat") + 3);
  std::ofstream(folder_ / "task/outputs/go") << "";
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  int lines = 0;
  for (const auto& heartbeat : server_.heartbeats()) lines += heartbeat.logs_size();
  EXPECT_EQ(lines, 1);
}

TEST_F(WorkerLoopTest, LogLinesOfAFailedHeartbeatAreToldAgain) {
  server_.Queue("progress");
  server_.FailAlways("Heartbeat", grpc::StatusCode::UNAVAILABLE);
  Start();
  server_.WaitForCalls("Heartbeat", 20);
  server_.FailAlways("Heartbeat", grpc::StatusCode::OK);
  const auto heartbeat = server_.WaitForHeartbeat(
      [](const HeartbeatRequest& request) { return request.logs_size() > 0; });
  EXPECT_EQ(heartbeat.logs(0).text(), "a line");
  std::ofstream(folder_ / "task/outputs/go") << "";
  EXPECT_TRUE(server_.WaitForCompletion().has_result());
}

TEST_F(WorkerLoopTest, LogLinesThatNoHeartbeatToldComeWithTheCompletion) {
  server_.Queue("progress");
  server_.FailAlways("Heartbeat", grpc::StatusCode::UNAVAILABLE);
  Start();
  server_.WaitForCalls("Heartbeat", 20);
  std::ofstream(folder_ / "task/outputs/go") << "";
  const auto completion = server_.WaitForCompletion();
  ASSERT_EQ(completion.logs_size(), 1);
  EXPECT_EQ(completion.logs(0).text(), "a line");
}

TEST_F(WorkerLoopTest, CancelKillsTheWholeProcessGroup) {
  server_.Queue("hang");
  Start();
  const auto [engine, grandchild] = WaitForHang();
  Process engine_process(engine), grandchild_process(grandchild);
  server_.Want(HeartbeatResponse::ABORT);
  EXPECT_TRUE(engine_process.EndsWithin(absl::Seconds(2)));
  EXPECT_TRUE(grandchild_process.EndsWithin(absl::Seconds(2)));
  EXPECT_EQ(CodeOf(server_.WaitForCompletion()), absl::StatusCode::kCancelled);
  // The worker lives on.
  server_.Want(HeartbeatResponse::CONTINUE);
  server_.Queue("copy");
  EXPECT_TRUE(server_.WaitForCompletion(2).has_result());
}

TEST_F(WorkerLoopTest, APauseKillsTheProcessGroupAndGivesTheTaskBack) {
  server_.Queue("hang");
  Start();
  const auto [engine, grandchild] = WaitForHang();
  Process engine_process(engine), grandchild_process(grandchild);
  server_.Want(HeartbeatResponse::RETURN);
  EXPECT_TRUE(engine_process.EndsWithin(absl::Seconds(2)));
  EXPECT_TRUE(grandchild_process.EndsWithin(absl::Seconds(2)));
  EXPECT_EQ(server_.WaitForCompletion().returned().reason(), "The job is paused");
  server_.Want(HeartbeatResponse::CONTINUE);
  server_.Queue("copy");
  EXPECT_TRUE(server_.WaitForCompletion(2).has_result());
}

TEST_F(WorkerLoopTest, ASupersededLeaseEndsTheEngineAndIsNotCompleted) {
  server_.Queue("hang");
  Start();
  const auto [engine, grandchild] = WaitForHang();
  Process engine_process(engine), grandchild_process(grandchild);
  server_.FailNext("Heartbeat", {grpc::StatusCode::ABORTED});
  EXPECT_TRUE(engine_process.EndsWithin(absl::Seconds(2)));
  EXPECT_TRUE(grandchild_process.EndsWithin(absl::Seconds(2)));
  server_.Queue("copy");
  EXPECT_EQ(server_.WaitForCompletion(1).lease().token(), "token-2");
  EXPECT_TRUE(Stop().ok());
  EXPECT_EQ(server_.completion_count(), 1u);
}

TEST_F(WorkerLoopTest, ALeaseThatCannotBeRenewedEndsTheEngine) {
  server_.Queue("hang");
  Start();
  const auto [engine, grandchild] = WaitForHang();
  Process engine_process(engine);
  server_.FailAlways("Heartbeat", grpc::StatusCode::UNAVAILABLE);
  server_.WaitForCalls("Heartbeat", server_.calls("Heartbeat") + 2);
  clock_.Advance(absl::Seconds(59));
  server_.WaitForCalls("Heartbeat", server_.calls("Heartbeat") + 2);
  EXPECT_FALSE(engine_process.EndsWithin(absl::ZeroDuration()));
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(engine_process.EndsWithin(absl::Seconds(2)));
  server_.Queue("copy");
  EXPECT_EQ(server_.WaitForCompletion(1).lease().token(), "token-2");
}

TEST_F(WorkerLoopTest, AJumpOfTheWallClockDoesNotEndTheLease) {
  server_.Queue("progress");
  Start();
  server_.WaitForHeartbeat([](const HeartbeatRequest& request) { return request.fraction() > 0; });
  clock_.JumpWallClock(absl::Hours(5));
  server_.WaitForCalls("Heartbeat", server_.calls("Heartbeat") + 3);
  std::ofstream(folder_ / "task/outputs/go") << "";
  EXPECT_TRUE(server_.WaitForCompletion().has_result());
}

struct Death {
  const char* script;
  const char* how;
};
class WorkerLoopDeathTest : public WorkerLoopTest, public ::testing::WithParamInterface<Death> {};

TEST_P(WorkerLoopDeathTest, AnEngineThatDiesIsReportedAndReplaced) {
  server_.Queue(GetParam().script);
  Start();
  const CompleteTaskRequest completion = server_.WaitForCompletion(1);
  // A code that the server tries again.
  EXPECT_EQ(CodeOf(completion), absl::StatusCode::kUnavailable);
  EXPECT_THAT(completion.error().message(), HasSubstr(GetParam().how));
  EXPECT_EQ(ErrorReason(FromRpcStatus(completion.error())), kEngineDied);
  server_.Queue("copy");
  EXPECT_TRUE(server_.WaitForCompletion(2).has_result());
}
INSTANTIATE_TEST_SUITE_P(Deaths, WorkerLoopDeathTest,
                         ::testing::Values(Death{"abort", "killed by signal 6 (Aborted)"},
                                           Death{"exit", "exited with status 3"},
                                           Death{"orphan", "killed by signal 9 (Killed)"},
                                           Death{"garbage",
                                                 "Engine process was killed: Not a message"}),
                         [](const auto& info) { return std::string(info.param.script); });

class WorkerLoopSilenceTest : public WorkerLoopTest, public ::testing::WithParamInterface<Death> {};
TEST_P(WorkerLoopSilenceTest, AnEngineThatKeepsStillIsKilled) {
  options_.engine.silence_limit = absl::Milliseconds(100);
  server_.Queue(GetParam().script);
  Start();
  const CompleteTaskRequest completion = server_.WaitForCompletion(1);
  EXPECT_EQ(CodeOf(completion), absl::StatusCode::kUnavailable);
  EXPECT_THAT(completion.error().message(), HasSubstr(GetParam().how));
}
INSTANTIATE_TEST_SUITE_P(Silences, WorkerLoopSilenceTest,
                         ::testing::Values(Death{"silent", "silent for 100ms"},
                                           Death{"half", "stopped inside a message"}),
                         [](const auto& info) { return std::string(info.param.script); });

TEST_F(WorkerLoopTest, AnErrorOfTheTaskIsPassedOnAndTheEngineStays) {
  server_.Queue("copy");
  server_.Queue("error");
  server_.Queue("copy");
  Start();
  const CompleteTaskRequest completion = server_.WaitForCompletion(2);
  EXPECT_EQ(CodeOf(completion), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(completion.error().message(), "No such architecture");
  EXPECT_EQ(server_.WaitForCompletion(1).result().use().peak_host_memory_bytes(),
            server_.WaitForCompletion(3).result().use().peak_host_memory_bytes());
}

TEST_F(WorkerLoopTest, ACorruptDownloadIsFetchedAgain) {
  const ArtifactRef a = server_.Store("a", "the true content");
  server_.CorruptNextFetch("the fake content");
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("copy/a"), "the true content");
}

TEST_F(WorkerLoopTest, AWrongByteOfTheStorageIsNoticedAndTheServerAsked) {
  std::string content(10'000, 'x');
  const ArtifactRef a = server_.Store("a", content);
  content[5'000] = 'y';
  ScriptedHttpServer storage([&](const ScriptedHttpServer::Request& request) {
    return ScriptedHttpServer::RestOf(content, request);
  });
  server_.GiveUrls(storage.url());
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(storage.log().size(), 1u);
  EXPECT_EQ(server_.uploads().at("copy/a"), std::string(10'000, 'x'));
}

TEST_F(WorkerLoopTest, WhatStaysCorruptIsAFailureOfTheWorkerNotOfTheInput) {
  const ArtifactRef a = server_.Store("a", "the true content");
  server_.CorruptNextFetch("the fake content");
  server_.CorruptNextFetch("too long for what was announced");
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  const CompleteTaskRequest completion = server_.WaitForCompletion();
  // DATA_LOSS would end the job for good.
  EXPECT_EQ(CodeOf(completion), absl::StatusCode::kInternal);
  EXPECT_THAT(completion.error().message(), HasSubstr("Corrupt download of a"));
}

TEST_F(WorkerLoopTest, ACacheThatRottedIsFetchedAgain) {
  const ArtifactRef a = server_.Store("a", "the true content");
  fs::create_directories(folder_ / "cache");
  std::ofstream(folder_ / "cache" / a.sha256()) << "the fake content";
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("copy/a"), "the true content");
}

TEST_F(WorkerLoopTest, ABrokenDownloadGoesOnWhereItStopped) {
  const ArtifactRef a = server_.Store("a", "0123456789abcdef");
  server_.BreakNextFetchAfter(10);
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("copy/a"), "0123456789abcdef");
  EXPECT_THAT(server_.fetch_offsets(), ElementsAre(0, 10));
}

TEST_F(WorkerLoopTest, EveryCallSurvivesAServerThatIsAwayForAWhile) {
  const ArtifactRef a = server_.Store("a", "content");
  server_.Queue("copy", "projects/p/jobs/j", {a});
  for (const char* method : {"RegisterWorker", "AcquireTask", "FetchArtifact", "Heartbeat",
                             "UploadArtifact", "CompleteTask"}) {
    server_.FailNext(method, {grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::UNAVAILABLE});
  }
  Start();
  EXPECT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("copy/a"), "content");
}

TEST_F(WorkerLoopTest, ARefusalThatSaysWhenToComeAgainIsWaitedFor) {
  const ArtifactRef a = server_.Store("a", "content");
  server_.Queue("copy", "projects/p/jobs/j", {a});
  const absl::Status at_once =
      QuotaError("TOO_MANY_TRANSFERS", "server", "many are open", absl::ZeroDuration());
  for (const char* method : {"RegisterWorker", "AcquireTask", "FetchArtifact", "CompleteTask"}) {
    server_.FailNext(method, at_once);
  }
  server_.FailNext("UploadArtifact",
                   QuotaError("TOO_MANY_TRANSFERS", "server", "many are open", absl::Seconds(1)));
  Start();
  server_.WaitForCalls("UploadArtifact", 1);
  const absl::Time refused = absl::Now();
  server_.WaitForCalls("UploadArtifact", 2);
  // Its own back-off is 5 ms at most. Less some slack: the refusal came before it was seen here.
  EXPECT_GT(absl::Now() - refused, absl::Milliseconds(500));
  EXPECT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("copy/a"), "content");
}

TEST_F(WorkerLoopTest, AnExhaustionWithoutAnEndIsNotTriedAgain) {
  const ArtifactRef a = server_.Store("a", "content");
  server_.FailNext("UploadArtifact", {grpc::StatusCode::RESOURCE_EXHAUSTED});
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  const CompleteTaskRequest completion = server_.WaitForCompletion();
  // RESOURCE_EXHAUSTED would say that the device's memory was not enough.
  EXPECT_EQ(CodeOf(completion), absl::StatusCode::kInternal);
  EXPECT_THAT(completion.error().message(), HasSubstr("Cannot upload copy/a"));
  EXPECT_EQ(server_.calls("UploadArtifact"), 1);
}

TEST_F(WorkerLoopTest, ATransferThatTheServerCancelsIsMadeAgain) {
  const ArtifactRef a = server_.Store("a", "content");
  server_.FailNext("FetchArtifact", {grpc::StatusCode::CANCELLED});
  server_.FailNext("UploadArtifact", {grpc::StatusCode::CANCELLED});
  server_.Queue("copy", "projects/p/jobs/j", {a});
  Start();
  EXPECT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.uploads().at("copy/a"), "content");
}

TEST_F(WorkerLoopTest, RegistersAgainWhenTheServerHasForgottenIt) {
  server_.FailNext("AcquireTask", {grpc::StatusCode::FAILED_PRECONDITION});
  server_.Queue("copy");
  Start();
  EXPECT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_EQ(server_.registrations().size(), 2u);
}

TEST_F(WorkerLoopTest, EndsWhenAnotherProcessHasItsName) {
  server_.Queue("copy");
  Start();
  server_.WaitForCompletion();
  server_.ReplaceWorker();
  const absl::Status ended = Wait();
  EXPECT_TRUE(absl::IsAborted(ended)) << ended;
  EXPECT_THAT(std::string(ended.message()), HasSubstr("--name"));
  EXPECT_EQ(server_.registrations().size(), 1u) << "it must not take the name back";
}

TEST_F(WorkerLoopTest, ACompletionThatTheServerRefusesIsGivenUp) {
  server_.FailNext("CompleteTask", {grpc::StatusCode::ABORTED});
  server_.Queue("copy");
  server_.Queue("copy");
  Start();
  EXPECT_EQ(server_.WaitForCompletion(1).lease().token(), "token-2");
}

TEST_F(WorkerLoopTest, DrainingEndsTheEngineAndHandsTheTaskBack) {
  server_.Queue("hang");
  Start();
  const auto [engine, grandchild] = WaitForHang();
  Process engine_process(engine), grandchild_process(grandchild);
  EXPECT_TRUE(Stop().ok());
  EXPECT_TRUE(engine_process.EndsWithin(absl::ZeroDuration()));
  EXPECT_TRUE(grandchild_process.EndsWithin(absl::Seconds(2)));
  const CompleteTaskRequest completion = server_.WaitForCompletion();
  EXPECT_EQ(completion.returned().reason(), "Worker is draining");
}

TEST_F(WorkerLoopTest, DrainingDoesNotWaitForAServerThatIsAway) {
  server_.FailAlways("RegisterWorker", grpc::StatusCode::UNAVAILABLE);
  Start();
  server_.WaitForCalls("RegisterWorker", 2);
  EXPECT_TRUE(Stop().ok());
}

TEST_F(WorkerLoopTest, PathsThatLeaveTheTaskAreRefused) {
  ArtifactRef evil = server_.Store("../../evil", "content");
  server_.Queue("copy", "projects/p/jobs/j", {evil});
  Start();
  EXPECT_EQ(CodeOf(server_.WaitForCompletion()), absl::StatusCode::kInternal);
  EXPECT_EQ(server_.calls("FetchArtifact"), 0);
}

TEST_F(WorkerLoopTest, TheCacheIsTrimmedAfterEachTask) {
  options_.max_cache_bytes = 10;
  const ArtifactRef a = server_.Store("a", "0123456789");
  const ArtifactRef b = server_.Store("b", "abcdefghij");
  server_.Queue("copy", "projects/p/jobs/j", {a, b});
  Start();
  ASSERT_TRUE(server_.WaitForCompletion().has_result());
  EXPECT_TRUE(Stop().ok());
  int64_t total = 0;
  for (const auto& entry : fs::directory_iterator(folder_ / "cache")) {
    total += static_cast<int64_t>(entry.file_size());
  }
  EXPECT_LE(total, 10);
}

}  // namespace
}  // namespace qpruner::worker
