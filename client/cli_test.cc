// The real program against a fake server: what it prints and what it tells the shell.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/child_process.h"
#include "base/durable_file.h"
#include "client/job_file.h"
#include "client/testing/fake_job_service.h"

namespace qpruner {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

struct Outcome {
  int code = -1;
  // Standard output and error.
  std::string text;
};

class CliTest : public ::testing::Test {
 protected:
  CliTest() {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              absl::StrCat("qpruner-cli-", getpid(), "-",
                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    EXPECT_TRUE(WriteFileDurably(JobPath(),
                                 "spec:\n  model: {uri: 'builtin://stories260k'}\n"
                                 "  pruning: {ratio: 0.2}\n  search: {max_bytes: 240000}\n")
                    .ok());
  }
  ~CliTest() override { std::filesystem::remove_all(folder_); }

  std::string JobPath() const { return (folder_ / "job.yaml").string(); }

  std::unique_ptr<ChildProcess> Spawn(std::vector<std::string> arguments) {
    const char* bin = getenv("QPRUNER_BIN_DIR");
    ChildProcess::Options options;
    options.argv = {absl::StrCat(bin == nullptr ? "build/release/bin" : bin, "/qpruner")};
    for (std::string& argument : arguments) options.argv.push_back(std::move(argument));
    options.extra_environment = {"QPRUNER_SERVER=" + server_.address()};
    options.output_path = (folder_ / "output").string();
    std::filesystem::remove(options.output_path);
    auto process = ChildProcess::Spawn(options);
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }
  Outcome Finish(ChildProcess& process) {
    Outcome outcome;
    EXPECT_TRUE(process.WaitFor(absl::Seconds(60)));
    const std::optional<int> status = process.Poll();
    if (status && WIFEXITED(*status)) outcome.code = WEXITSTATUS(*status);
    outcome.text = Output();
    return outcome;
  }
  std::string Output() const {
    return ReadFile((folder_ / "output").string(), 10 << 20).value_or("");
  }
  Outcome Run(std::vector<std::string> arguments) { return Finish(*Spawn(std::move(arguments))); }
  // Waits for text in the output.
  bool Shows(const std::string& text) {
    for (int i = 0; i < 3000; ++i) {
      if (Output().find(text) != std::string::npos) return true;
      absl::SleepFor(absl::Milliseconds(10));
    }
    return false;
  }

  FakeJobServer server_;
  std::filesystem::path folder_;
};

TEST_F(CliTest, SubmitSendsTheFileWithItsOverrides) {
  const Outcome outcome =
      Run({"submit", JobPath(), "--set", "spec.pruning.ratio=0.3", "--text", "/t.txt"});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_EQ(outcome.text, "projects/default/jobs/example\n");
  const auto created = server_.service().created();
  ASSERT_THAT(created, SizeIs(1));
  EXPECT_EQ(created[0].job().spec().pruning().ratio(), 0.3);
  EXPECT_EQ(created[0].job().spec().evaluation().dataset().uri(), "file:///t.txt");
  EXPECT_EQ(created[0].request_id().size(), 32u);
}

TEST_F(CliTest, SubmitAndWaitShowsTheResultAndDownloads) {
  server_.service().AddArtifact("model/config.json", "{}");
  const std::string output = (folder_ / "result").string();
  const Outcome outcome = Run({"submit", JobPath(), "--wait", "--output", output, "--ascii"});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("running: search"));
  EXPECT_THAT(outcome.text, HasSubstr("KL to the original"));
  EXPECT_THAT(outcome.text, HasSubstr("> fine-tuned"));
  EXPECT_THAT(outcome.text, HasSubstr("Bits of each group"));
  EXPECT_THAT(outcome.text, HasSubstr(output + "/model/"));
  EXPECT_THAT(outcome.text, Not(HasSubstr("\x1b")));
  EXPECT_EQ(ReadFile(output + "/model/config.json", 100).value_or(""), "{}");
}

TEST_F(CliTest, TheIntermediateModelComesOnlyWithAll) {
  server_.service().AddArtifact("model/config.json", "{}");
  server_.service().AddArtifact("prepared/config.json", "{}");
  const std::filesystem::path output = folder_ / "result";
  ASSERT_EQ(Run({"submit", JobPath(), "--wait", "--output", output}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(output / "model/config.json"));
  EXPECT_FALSE(std::filesystem::exists(output / "prepared"));
  ASSERT_EQ(Run({"submit", JobPath(), "--wait", "--output", output, "--all"}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(output / "prepared/config.json"));
}

TEST_F(CliTest, PauseAndResumeSayWhatTheJobIsNow) {
  EXPECT_EQ(Run({"pause", "example"}).text, "example is pausing\n");
  EXPECT_EQ(Run({"resume", "example"}).text, "example is running\n");
  EXPECT_EQ(server_.service().calls("PauseJob"), 1);
  EXPECT_EQ(server_.service().calls("ResumeJob"), 1);
  EXPECT_EQ(Run({"pause", "other"}).code, 4);
}

TEST_F(CliTest, ExitCodes) {
  EXPECT_EQ(Run({"get", "example"}).code, 0);
  EXPECT_EQ(Run({}).code, 2);
  EXPECT_EQ(Run({"--help"}).code, 0);
  EXPECT_EQ(Run({"frobnicate"}).code, 2);
  EXPECT_EQ(Run({"get", "Not A Name"}).code, 2);
  EXPECT_EQ(Run({"get", "other"}).code, 4);
  EXPECT_EQ(Run({"submit", "/nonexistent.yaml"}).code, 4);
  EXPECT_EQ(Run({"list", "--server", "unix:/nonexistent/socket"}).code, 3);
  EXPECT_EQ(Run({"list", "--state", "asleep"}).code, 2);
  server_.service().Fail("CancelJob", 1,
                         grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "it has ended"));
  EXPECT_EQ(Run({"cancel", "example"}).code, 6);
  server_.service().Fail("CancelJob", 1,
                         grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "no token"));
  const Outcome denied = Run({"cancel", "example"});
  EXPECT_EQ(denied.code, 8);
  EXPECT_THAT(denied.text, HasSubstr("--token-file"));
  EXPECT_EQ(Run({"list", "--token-file", "/nonexistent"}).code, 2);
  server_.service().Fail("DeleteJob", 1, grpc::Status(grpc::StatusCode::INTERNAL, "broken"));
  EXPECT_EQ(Run({"delete", "example"}).code, 9);
}

TEST_F(CliTest, BadJobsNameTheirLines) {
  ASSERT_TRUE(WriteFileDurably(JobPath(), "spec:\n  pruning:\n    ratoi: 1\n").ok());
  Outcome outcome = Run({"submit", JobPath()});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.text,
              HasSubstr("job.yaml:3: spec.pruning.ratoi: unknown field; did you mean"));
  EXPECT_THAT(server_.service().created(), SizeIs(0));
  // What only the server knows.
  ASSERT_TRUE(WriteFileDurably(JobPath(), "spec:\n  pruning:\n    ratio: 1.5\n").ok());
  for (const char* command : {"submit", "validate"}) {
    outcome = Run({command, JobPath()});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(outcome.text, HasSubstr("job.yaml:3: spec.pruning.ratio: must be in [0, 1)"));
  }
}

TEST_F(CliTest, WatchOfAFailedJob) {
  server_.service().EndInFailure("The model has no layers");
  const Outcome outcome = Run({"watch", "example"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.text, HasSubstr("the job failed: The model has no layers"));
}

TEST_F(CliTest, WatchAsJsonLinesGivesEveryEvent) {
  server_.service().AddFault("WatchJob", {.after_messages = 9});
  const Outcome outcome = Run({"watch", "example", "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  int64_t expected = 0;
  for (const auto& line : absl::StrSplit(outcome.text, '\n', absl::SkipEmpty())) {
    const auto json = nlohmann::json::parse(std::string(line));
    EXPECT_EQ(json["sequence"].get<std::string>(), absl::StrCat(++expected));
  }
  EXPECT_EQ(expected, MakeExampleJob().job.last_event_sequence());
}

TEST_F(CliTest, EveryCommandPrintsOneJsonDocument) {
  server_.service().AddArtifact("model/config.json", "{}");
  const std::string output = (folder_ / "files").string();
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"submit", JobPath()},
                                             {"submit", JobPath(), "--wait"},
                                             {"validate", JobPath()},
                                             {"validate", JobPath(), "--offline"},
                                             {"get", "example"},
                                             {"list"},
                                             {"trials", "example"},
                                             {"pareto", "example"},
                                             {"artifacts", "example"},
                                             {"download", "example", "--output", output},
                                             {"capabilities"},
                                             {"cancel", "example"},
                                             {"delete", "example"}}) {
    std::vector<std::string> with_json = arguments;
    with_json.push_back("--json");
    const Outcome outcome = Run(with_json);
    EXPECT_EQ(outcome.code, 0) << arguments[0] << ": " << outcome.text;
    EXPECT_TRUE(nlohmann::json::accept(outcome.text)) << arguments[0] << ": " << outcome.text;
  }
}

TEST_F(CliTest, DownloadPicksPathsAndRefusesDamage) {
  server_.service().AddArtifact("model/config.json", "{}");
  server_.service().AddArtifact("report.json", "[]");
  const std::string output = (folder_ / "files").string();
  EXPECT_EQ(Run({"download", "example", "model/", "--output", output}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(output + "/model/config.json"));
  EXPECT_FALSE(std::filesystem::exists(output + "/report.json"));
  const Outcome missing = Run({"download", "example", "report.jsn", "--output", output});
  EXPECT_EQ(missing.code, 4);
  EXPECT_THAT(missing.text, HasSubstr("did you mean report.json?"));
  server_.service().AddFault("DownloadArtifact", {.after_messages = 0, .damage = true});
  EXPECT_EQ(Run({"download", "example", "report.json", "--output", output}).code, 7);
  EXPECT_FALSE(std::filesystem::exists(output + "/report.json"));
}

TEST_F(CliTest, DownloadNeverLeavesItsFolder) {
  server_.service().AddArtifact("../escaped", "x");
  EXPECT_EQ(Run({"download", "example", "--output", (folder_ / "in").string()}).code, 7);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "escaped"));
}

TEST_F(CliTest, FirstCtrlCLeavesAWatchedJobAlone) {
  server_.service().HoldAfter(8);
  auto process = Spawn({"watch", "example"});
  ASSERT_TRUE(Shows("running: search"));
  process->SignalGroup(SIGINT);
  const Outcome outcome = Finish(*process);
  EXPECT_EQ(outcome.code, 130);
  EXPECT_THAT(outcome.text, HasSubstr("the job goes on"));
  EXPECT_EQ(server_.service().calls("CancelJob"), 0);
}

TEST_F(CliTest, SecondCtrlCCancelsAWatchedJob) {
  server_.service().HoldAfter(8);
  auto process = Spawn({"watch", "example"});
  ASSERT_TRUE(Shows("running: search"));
  process->SignalGroup(SIGINT);
  ASSERT_TRUE(Shows("Ctrl-C again cancels"));
  process->SignalGroup(SIGINT);
  const Outcome outcome = Finish(*process);
  EXPECT_EQ(outcome.code, 5) << outcome.text;
  EXPECT_EQ(server_.service().calls("CancelJob"), 1);
}

TEST_F(CliTest, RunWithoutItsServerSaysSo) {
  const Outcome absent = Run({"run", JobPath(), "--server-program", "/nonexistent/server"});
  EXPECT_EQ(absent.code, 4);
  EXPECT_THAT(absent.text, HasSubstr("No program qpruner-server"));
  const Outcome broken = Run({"run", JobPath(), "--server-program", "/bin/false"});
  EXPECT_EQ(broken.code, 3);
  EXPECT_THAT(broken.text, HasSubstr("The local server exited with status 1"));
}

TEST_F(CliTest, GetAsAJobFileSubmitsAgain) {
  const Outcome outcome = Run({"get", "example", "--job-file"});
  EXPECT_EQ(outcome.code, 0);
  const auto file = ParseJobFile(outcome.text, "again.yaml", ".");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->job.spec().search().max_bytes(), 240'000);
}

}  // namespace
}  // namespace qpruner
