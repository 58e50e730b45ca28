#include "client/local_server.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "client/job_client.h"

namespace qpruner {
namespace {

// The folder this program lies in.
std::filesystem::path ProgramFolder() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const Options& options) {
  auto server = std::unique_ptr<LocalServer>(new LocalServer);
  std::string program = options.program;
  if (program.empty()) program = (ProgramFolder() / "qpruner-server").string();
  if (access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(
        "No program qpruner-server beside this one: ", program,
        ". Build it, or use a server that runs: qpruner submit --server ADDRESS --wait"));
  }
  // A socket's path holds at most 107 bytes, so it is not put into the data folder.
  std::string scratch = (std::filesystem::temp_directory_path() / "qpruner-run-XXXXXX").string();
  if (mkdtemp(scratch.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", scratch));
  }
  server->scratch_ = scratch;
  const std::string data_dir = options.data_dir.empty() ? scratch + "/data" : options.data_dir;
  std::error_code error;
  std::filesystem::create_directories(data_dir, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot create ", data_dir));
  server->address_ = absl::StrCat("unix:", scratch, "/socket");
  server->log_path_ = data_dir + "/server.log";

  ChildProcess::Options child;
  child.argv = {program, absl::StrCat("--listen=", server->address_),
                absl::StrCat("--data-dir=", data_dir),
                absl::StrCat("--local-workers=", options.workers), "--metrics-listen=off"};
  child.parent_death_signal = SIGTERM;
  child.output_path = server->log_path_;
  ASSIGN_OR_RETURN(server->process_, ChildProcess::Spawn(child));
  RETURN_IF_ERROR(server->WaitUntilReady(options));
  return server;
}

absl::Status LocalServer::WaitUntilReady(const Options& options) {
  JobClient::Options client_options;
  client_options.patience = absl::ZeroDuration();
  client_options.call_timeout = absl::Seconds(5);
  JobClient client(OpenChannel(address_), client_options, RealClock(), RealSleeper());
  const absl::Duration deadline = RealClock().Monotonic() + options.start_timeout;
  absl::Status last = absl::UnavailableError("no answer");
  while (RealClock().Monotonic() < deadline) {
    if (options.interrupted && options.interrupted()) return absl::CancelledError("Interrupted");
    if (const std::optional<int> ended = process_->Poll()) {
      return absl::UnavailableError(absl::StrCat("The local server ", DescribeWaitStatus(*ended),
                                                 " while it started. Its log ends:\n", LogTail()));
    }
    const absl::StatusOr<v1::ListCapabilitiesResponse> answer = client.ListCapabilities();
    if (answer.ok() && answer->workers_size() > 0) return absl::OkStatus();
    last = answer.ok() ? absl::UnavailableError("its worker has not registered") : answer.status();
    absl::SleepFor(absl::Milliseconds(30));
  }
  return absl::UnavailableError(absl::StrCat("The local server was not ready within ",
                                             absl::FormatDuration(options.start_timeout), " (",
                                             last.message(), "). Its log ends:\n", LogTail()));
}

std::string LocalServer::LogTail() const {
  constexpr size_t kLines = 15;
  const std::string log = ReadFile(log_path_, 64 << 20).value_or("(no log)");
  std::vector<std::string> lines = absl::StrSplit(log, '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (lines.size() > kLines) lines.erase(lines.begin(), lines.end() - kLines);
  return absl::StrCat("  ", absl::StrJoin(lines, "\n  "));
}

LocalServer::~LocalServer() {
  if (process_ != nullptr) process_->Terminate(absl::Seconds(10));
  std::error_code ignored;
  if (!scratch_.empty()) std::filesystem::remove_all(scratch_, ignored);
}

}  // namespace qpruner
