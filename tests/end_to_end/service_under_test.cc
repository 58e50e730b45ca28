#include "tests/end_to_end/service_under_test.h"

#include <signal.h>
#include <stdlib.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "tests/testing/job_outcome.h"
#include "tests/testing/process_usage.h"
#include "tests/testing/server_process.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

// Live processes called `program` that were started with an argument or environment naming
// `folder`.
std::vector<pid_t> ProcessesOf(const std::string& program, const fs::path& folder) {
  std::vector<pid_t> found;
  for (const ProcessInfo& process : ListProcesses()) {
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
      ChildProcess::Spawn({.argv = {BuiltProgram("qpruner-server"), "--listen", address_,
                                    "--data-dir", (folder_ / "data").string(), "--metrics-listen",
                                    "off", absl::StrCat("--local-workers=", local_workers_)},
                           .parent_death_signal = SIGTERM,
                           // Marks server and workers, whatever their arguments; an engine is told
                           // its folders.
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
  const absl::StatusOr<std::string> outcome = JobOutcome(service.jobs(), name);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome.value_or("");
}

}  // namespace qpruner
