#include "tests/end_to_end/service_under_test.h"

#include <signal.h>
#include <stdlib.h>

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

std::string BinaryPath(const std::string& name) {
  const char* folder = getenv("QPRUNER_BIN_DIR");
  return absl::StrCat(folder != nullptr ? folder : "build/release/bin", "/", name);
}

struct ProcessInfo {
  pid_t pid;
  pid_t parent;
  std::string program;
  char state;
};

std::vector<ProcessInfo> AllProcesses() {
  std::vector<ProcessInfo> processes;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string id = entry.path().filename();
    if (id.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "stat");
    std::string line;
    if (!std::getline(file, line)) continue;
    // pid (program) state parent ...; the program may hold spaces and parentheses.
    const size_t open = line.find('('), close = line.rfind(')');
    if (open == std::string::npos || close == std::string::npos) continue;
    ProcessInfo info{static_cast<pid_t>(std::stol(id)), 0, line.substr(open + 1, close - open - 1),
                     '?'};
    std::istringstream rest(line.substr(close + 1));
    rest >> info.state >> info.parent;
    processes.push_back(info);
  }
  return processes;
}

// Live processes called `program` that were started with an argument or environment naming
// `folder`.
std::vector<pid_t> ProcessesOf(const std::string& program, const fs::path& folder) {
  std::vector<pid_t> found;
  for (const ProcessInfo& process : AllProcesses()) {
    // The kernel keeps 15 characters of a program's name.
    if (process.program != program.substr(0, 15) || process.state == 'Z' || process.state == 'X')
      continue;
    for (const char* what : {"environ", "cmdline"}) {
      std::ifstream file(absl::StrCat("/proc/", process.pid, "/", what));
      const std::string content((std::istreambuf_iterator<char>(file)), {});
      if (content.find(folder.string()) != std::string::npos) {
        found.push_back(process.pid);
        break;
      }
    }
  }
  return found;
}

bool IsFinal(v1::CompressionJob::State state) {
  return state == v1::CompressionJob::SUCCEEDED || state == v1::CompressionJob::FAILED ||
         state == v1::CompressionJob::CANCELLED;
}

}  // namespace

ServiceUnderTest::ServiceUnderTest(int local_workers) : local_workers_(local_workers) {
  std::string pattern = absl::StrCat(fs::temp_directory_path().string(), "/qpruner-e2e-XXXXXX");
  folder_ = mkdtemp(pattern.data());
  address_ = absl::StrCat("unix:", (folder_ / "socket").string());
}

ServiceUnderTest::~ServiceUnderTest() {
  if (server_) server_->Terminate(absl::Seconds(20));
  for (const auto& pids : {Workers(), Engines()}) {
    for (pid_t pid : pids) {
      ADD_FAILURE() << "process " << pid << " outlived its server";
      kill(pid, SIGKILL);
    }
  }
  if (testing::Test::HasFailure()) {
    std::ifstream log(folder_ / "server.log");
    const std::string content((std::istreambuf_iterator<char>(log)), {});
    fprintf(stderr, "---- server.log (last part)\n%s\n",
            content.substr(content.size() - std::min<size_t>(content.size(), 6000)).c_str());
  }
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void ServiceUnderTest::Start() {
  auto server =
      ChildProcess::Spawn({.argv = {BinaryPath("qpruner-server"), "--listen", address_,
                                    "--data-dir", (folder_ / "data").string(), "--metrics-listen",
                                    "off", absl::StrCat("--local-workers=", local_workers_)},
                           .parent_death_signal = SIGTERM,
                           // Marks every process below, whatever its arguments.
                           .extra_environment = {absl::StrCat("QPRUNER_E2E=", folder_.string())},
                           .output_path = (folder_ / "server.log").string()});
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  auto channel = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  ASSERT_TRUE(channel->WaitForConnected(
      gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_seconds(30, GPR_TIMESPAN))))
      << "the server does not answer";
  stub_ = v1::JobService::NewStub(channel);
}

void ServiceUnderTest::KillServer() {
  kill(server_->pid(), SIGKILL);
  ASSERT_TRUE(server_->WaitFor(absl::Seconds(10)));
}

int ServiceUnderTest::Stop() {
  kill(server_->pid(), SIGTERM);
  EXPECT_TRUE(server_->WaitFor(absl::Seconds(30))) << "the server does not end on SIGTERM";
  return server_->Poll().value_or(-1);
}

std::vector<pid_t> ServiceUnderTest::Workers() const {
  return ProcessesOf("qpruner-worker", folder_);
}
std::vector<pid_t> ServiceUnderTest::Engines() const {
  return ProcessesOf("qpruner-engine", folder_);
}

bool ServiceUnderTest::WaitUntil(absl::Duration timeout, const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

v1::CompressionJob SmallJob() {
  v1::CompressionJob job;
  v1::CompressionSpec& spec = *job.mutable_spec();
  spec.mutable_model()->set_uri("builtin://stories260k");
  spec.mutable_calibration()->set_sample_count(16);
  spec.mutable_calibration()->set_sequence_length(64);
  spec.mutable_pruning()->set_ratio(0.25);
  spec.mutable_search()->set_max_average_bits(6);
  spec.mutable_search()->set_max_trials(8);
  spec.mutable_search()->set_granularity(v1::Search::BLOCK);
  spec.mutable_fine_tune()->set_steps(10);
  spec.mutable_fine_tune()->set_warmup_steps(2);
  spec.mutable_fine_tune()->set_batch_size(4);
  spec.mutable_fine_tune()->set_sequence_length(64);
  spec.mutable_evaluation()->set_max_selection_tokens(2048);
  spec.mutable_evaluation()->set_max_test_tokens(2048);
  return job;
}

v1::CompressionJob Create(ServiceUnderTest& service, const v1::CompressionJob& job) {
  grpc::ClientContext context;
  v1::CreateJobRequest request;
  *request.mutable_job() = job;
  v1::CompressionJob created;
  const grpc::Status status = service.jobs().CreateJob(&context, request, &created);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return created;
}

std::vector<v1::JobEvent> FollowJob(ServiceUnderTest& service, const std::string& name,
                                    absl::Duration timeout,
                                    const std::function<void(const v1::JobEvent&)>& on_event) {
  std::vector<v1::JobEvent> events;
  const absl::Time deadline = absl::Now() + timeout;
  bool finished = false;
  while (!finished) {
    if (absl::Now() > deadline) {
      ADD_FAILURE() << "job not finished after " << timeout << ", last event: "
                    << (events.empty() ? "none" : events.back().ShortDebugString());
      return events;
    }
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(absl::ToChronoTime(deadline));
    v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(events.empty() ? 0 : events.back().sequence());
    auto stream = service.jobs().WatchJob(&context, request);
    v1::JobEvent event;
    while (stream->Read(&event)) {
      EXPECT_EQ(event.sequence(), (events.empty() ? 0 : events.back().sequence()) + 1);
      events.push_back(event);
      if (event.has_state_changed()) finished = IsFinal(event.state_changed().state());
      if (on_event) on_event(event);
    }
    const grpc::Status status = stream->Finish();
    if (!status.ok()) {
      EXPECT_TRUE(status.error_code() == grpc::StatusCode::UNAVAILABLE) << status.error_message();
    }
  }
  return events;
}

std::string Outcome(ServiceUnderTest& service, const std::string& name) {
  std::string text;
  {
    grpc::ClientContext context;
    v1::ListTrialsRequest request;
    v1::ListTrialsResponse response;
    request.set_parent(name);
    EXPECT_TRUE(service.jobs().ListTrials(&context, request, &response).ok());
    for (v1::Trial& trial : *response.mutable_trials()) {
      trial.clear_name();
      trial.clear_worker();
      trial.clear_attempt_count();
      trial.clear_start_time();
      trial.clear_end_time();
      absl::StrAppend(&text, trial.ShortDebugString(), "\n");
    }
  }
  {
    grpc::ClientContext context;
    v1::GetParetoFrontRequest request;
    v1::ParetoFront front;
    request.set_name(name);
    EXPECT_TRUE(service.jobs().GetParetoFront(&context, request, &front).ok());
    for (v1::ParetoPoint& point : *front.mutable_points()) {
      point.clear_trial();
      absl::StrAppend(&text, point.ShortDebugString(), "\n");
    }
  }
  {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    v1::CompressionJob job;
    request.set_name(name);
    EXPECT_TRUE(service.jobs().GetJob(&context, request, &job).ok());
    for (v1::JobReport::Row& row : *job.mutable_report()->mutable_rows()) row.clear_trial();
    job.mutable_report()->clear_chosen_trial();
    absl::StrAppend(&text, job.report().DebugString());
  }
  {
    grpc::ClientContext context;
    v1::ListArtifactsRequest request;
    v1::ListArtifactsResponse response;
    request.set_parent(name);
    EXPECT_TRUE(service.jobs().ListArtifacts(&context, request, &response).ok());
    for (const v1::Artifact& artifact : response.artifacts()) {
      absl::StrAppend(&text, artifact.name().substr(artifact.name().find("/artifacts/")), " ",
                      artifact.sha256(), "\n");
    }
  }
  return text;
}

}  // namespace qpruner
