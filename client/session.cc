#include "client/session.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "client/job_tables.h"

namespace qpruner {
namespace {

// Pictures wider than this are no clearer.
constexpr int kWidest = 96;

void Write(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t put = write(fd, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;  // Nobody reads it any more.
    text.remove_prefix(static_cast<size_t>(put));
  }
}

std::string AddressOf(const std::string& server) {
  if (absl::StrContains(server, ":")) return server;
  return absl::StrCat(server, ":7421");
}

}  // namespace

void Print(absl::string_view text) { Write(STDOUT_FILENO, text); }

void PrintError(absl::string_view text) {
  Write(STDERR_FILENO, absl::StrCat("qpruner: ", text, "\n"));
}

void PrintErrorDetail(absl::string_view text) { Write(STDERR_FILENO, text); }

Session::Session(const CommandOptions& common, std::string address,
                 std::shared_ptr<grpc::Channel> channel)
    : common_(common),
      address_(std::move(address)),
      terminal_(DetectTerminal(STDOUT_FILENO, common.ascii, common.color, kWidest)),
      client_(std::move(channel), ClientOptions(), RealClock(), RealSleeper()) {}

Session::Session(const CommandOptions& common, std::string address)
    : Session(common, address, OpenChannel(address)) {}

Session::Session(const CommandOptions& common)
    : Session(common, AddressOf(common.server),
              OpenChannel(AddressOf(common.server), common.security).value()) {}

absl::Status CheckConnection(const CommandOptions& common) {
  return CheckChannelSecurity(AddressOf(common.server), common.security);
}

ExitCode Session::Fail(const absl::Status& status) const {
  if (ExitCodeOf(status) == ExitCode::kUnreachable) {
    PrintError(absl::StrCat("no answer from the server at ", address_, ": ",
                            std::string(status.message()),
                            "\nStart one with qpruner-server, or name one with --server ADDRESS."));
  } else if (absl::IsUnauthenticated(status)) {
    PrintError(absl::StrCat(std::string(status.message()),
                            "\nGive one with --token-file FILE or QPRUNER_TOKEN_FILE."));
  } else {
    PrintError(std::string(status.message()));
  }
  return ExitCodeOf(status);
}

JobClient::Options Session::ClientOptions() {
  JobClient::Options options;
  options.on_retry = [this](const absl::Status& failure, absl::Duration) {
    notice_.Set(absl::StrCat(absl::IsResourceExhausted(failure)
                                 ? "The server is busy; trying again. ("
                                 : "No connection to the server; trying again. (",
                             std::string(failure.message()), ")"));
  };
  return options;
}

absl::StatusOr<std::string> FullName(const CommandOptions& common, const std::string& job) {
  const std::string name =
      absl::StrContains(job, "/") ? job : absl::StrCat("projects/", common.project, "/jobs/", job);
  ASSIGN_OR_RETURN(const JobName parsed, JobName::Parse(name));
  return parsed.ToString();
}

ExitCode FailCommandLine(const absl::Status& status) {
  PrintError(std::string(status.message()));
  return ExitCode::kBadInput;
}

ParetoPlotOptions PlotOptions(const Session& session, const v1::CompressionJob& job) {
  ParetoPlotOptions plot;
  plot.style = session.style();
  plot.style.width = std::min(plot.style.width, 84);
  plot.budget_bytes = BudgetBytes(job);
  return plot;
}

}  // namespace qpruner
