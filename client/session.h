// A command's connection, what it prints, and what it tells the shell.
#ifndef QPRUNER_CLIENT_SESSION_H_
#define QPRUNER_CLIENT_SESSION_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/commands.h"
#include "client/exit_code.h"
#include "client/job_client.h"
#include "client/job_follower.h"
#include "client/json_output.h"
#include "client/pareto_plot.h"
#include "client/terminal.h"

namespace qpruner {

// To standard output, as it is.
void Print(absl::string_view text);
// To standard error: "qpruner: TEXT", or the text as it is.
void PrintError(absl::string_view text);
void PrintErrorDetail(absl::string_view text);

// One command's connection to a server. Not thread-safe.
class Session {
 public:
  // To a server that this process started.
  Session(const CommandOptions& common, std::string address);
  // To common.server. REQUIRES: CheckConnection(common) is OK.
  explicit Session(const CommandOptions& common);

  const CommandOptions& common() const { return common_; }
  JobClient& client() { return client_; }
  ConnectionNotice& notice() { return notice_; }
  const Terminal& terminal() const { return terminal_; }
  const TextStyle& style() const { return terminal_.style; }

  // Says why and returns what the shell is told.
  ExitCode Fail(const absl::Status& status) const;

 private:
  Session(const CommandOptions& common, std::string address,
          std::shared_ptr<grpc::Channel> channel);
  JobClient::Options ClientOptions();

  const CommandOptions common_;
  const std::string address_;
  const Terminal terminal_;
  ConnectionNotice notice_;
  JobClient client_;
};

// `projects/P/jobs/J` of a job given in full or by its last part. INVALID_ARGUMENT: see
// FailCommandLine.
absl::StatusOr<std::string> FullName(const CommandOptions& common, const std::string& job);
// How a job's front is drawn here.
ParetoPlotOptions PlotOptions(const Session& session, const v1::CompressionJob& job);

// For commands that read one thing and print it.
template <typename Message, typename Format>
ExitCode PrintAnswer(const Session& session, const absl::StatusOr<Message>& answer,
                     const Format& format) {
  if (!answer.ok()) return session.Fail(answer.status());
  Print(session.common().json ? absl::StrCat(ToJson(*answer, /*indented=*/true), "\n")
                              : format(*answer));
  return ExitCode::kOk;
}

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_SESSION_H_
