// The commands of `qpruner`, without their command line. Those that take a job file or follow a job
// are in job_commands.cc, the others in commands.cc.
#ifndef QPRUNER_CLIENT_COMMANDS_H_
#define QPRUNER_CLIENT_COMMANDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/exit_code.h"
#include "client/terminal.h"
#include "proto/channel_security.h"

namespace qpruner {

// What holds for every command.
struct CommandOptions {
  // Where the server is: "host:port", "host" or "unix:/path".
  std::string server = "127.0.0.1:7421";
  // Of job names that are given short.
  std::string project = "default";
  ChannelSecurity security;
  bool json = false;
  bool ascii = false;
  ColorChoice color = ColorChoice::kAuto;
};

// INVALID_ARGUMENT: no connection can be opened so; names the flag. Starts no thread.
absl::Status CheckConnection(const CommandOptions& common);
// Prints what is wrong with the command line.
ExitCode FailCommandLine(const absl::Status& status);

// Where a job comes from, for the commands that take a job file.
struct JobSource {
  // "-" is standard input.
  std::string path;
  // "spec.pruning.ratio=0.2", applied in this order.
  std::vector<std::string> overrides;
  // Overrides spec.model.uri if not empty: a folder or a uri.
  std::string model;
  // Overrides all three data sets if not empty: a file or a uri.
  std::string text;
};

struct RunOptions {
  JobSource job;
  // Empty: a folder that is removed at the end.
  std::string data_dir;
  // Empty: a new folder named after the job.
  std::string output;
  // Download what the stages hand to each other, too.
  bool all = false;
  int workers = 1;
  // Empty: "qpruner-server" beside this program.
  std::string server_program;
};

struct SubmitOptions {
  JobSource job;
  std::string job_id;
  std::string request_id;
  bool wait = false;
  // With wait: where the result goes. Empty: nowhere.
  std::string output;
  // As RunOptions::all.
  bool all = false;
};

struct ListOptions {
  std::vector<std::string> states;
  std::vector<std::string> labels;
  int limit = 50;
};

// Each prints its result on standard output, and why it failed on standard error. `job` is a full
// resource name or its last part.
ExitCode RunCommand(const CommandOptions& common, const RunOptions& options);
ExitCode SubmitCommand(const CommandOptions& common, const SubmitOptions& options);
ExitCode ValidateCommand(const CommandOptions& common, const JobSource& job, bool offline);
ExitCode GetCommand(const CommandOptions& common, const std::string& job, bool as_job_file);
ExitCode ListCommand(const CommandOptions& common, const ListOptions& options);
ExitCode WatchCommand(const CommandOptions& common, const std::string& job, int64_t after_sequence);
ExitCode CancelCommand(const CommandOptions& common, const std::string& job);
ExitCode PauseCommand(const CommandOptions& common, const std::string& job);
ExitCode ResumeCommand(const CommandOptions& common, const std::string& job);
ExitCode DeleteCommand(const CommandOptions& common, const std::string& job);
ExitCode TrialsCommand(const CommandOptions& common, const std::string& job);
ExitCode ParetoCommand(const CommandOptions& common, const std::string& job);
ExitCode ArtifactsCommand(const CommandOptions& common, const std::string& job);
// `paths` are files or folders of the job's artifacts; none means all.
ExitCode DownloadCommand(const CommandOptions& common, const std::string& job,
                         const std::vector<std::string>& paths, const std::string& output);
ExitCode CapabilitiesCommand(const CommandOptions& common);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_COMMANDS_H_
