// qpruner: the command line of QPruner.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "client/commands.h"

namespace qpruner {
namespace {

constexpr char kFooter[] = R"(
Exit codes:
    0  done (of a job that was waited for: it SUCCEEDED)
    1  the job that was waited for FAILED
    2  bad command line, bad job file, or the server refuses the request
    3  no answer from the server
    4  no such job, artifact or file
    5  the job that was waited for was CANCELLED
    6  the job's state does not allow it, or its name is taken
    7  a local file cannot be read or written, or downloaded bytes are damaged
    8  the server does not know the token, or does not allow this with it
    9  any other error
  130  interrupted; a job of submit or watch goes on, one of run ends with its server

A job file is YAML or JSON of a CompressionJob's display_name, labels, priority and spec. The shortest:
    spec: {model: {uri: "builtin://stories260k"}, search: {max_average_bits: 6}}
JOB is projects/PROJECT/jobs/JOB or its last part. Everything is described in docs/cli.md.
)";

void AddJobSource(CLI::App& command, JobSource& source) {
  command.add_option("FILE", source.path, "Job file, YAML or JSON; - for standard input")
      ->required();
  command
      .add_option("--set", source.overrides,
                  "FIELD=VALUE over what the file says, such as spec.pruning.ratio=0.2; repeatable")
      ->allow_extra_args(false);
  command.add_option("--model", source.model, "Model folder or uri, instead of spec.model.uri");
  command.add_option("--text", source.text,
                     "Text file or uri for calibration, fine-tuning and evaluation");
}

int Main(int argc, char** argv) {
  CommandOptions common;
  ExitCode code = ExitCode::kOk;
  CLI::App app("Compresses language models: prune, find a precision for each layer, recover.",
               "qpruner");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.set_version_flag("--version", QPRUNER_VERSION);
  app.add_option("--server", common.server, "HOST:PORT or unix:PATH of the server")
      ->envname("QPRUNER_SERVER")
      ->capture_default_str();
  app.add_option("--project", common.project, "Project of job names that are given short")
      ->envname("QPRUNER_PROJECT")
      ->capture_default_str();
  app.add_option("--tls-ca", common.security.ca,
                 "PEM authorities of the server's certificate: use TLS")
      ->envname("QPRUNER_TLS_CA");
  app.add_option("--tls-cert", common.security.certificate, "PEM certificate to show to the server")
      ->envname("QPRUNER_TLS_CERT");
  app.add_option("--tls-key", common.security.key, "PEM key of --tls-cert")
      ->envname("QPRUNER_TLS_KEY");
  app.add_option("--token-file", common.security.token_file, "File with a token of yours")
      ->envname("QPRUNER_TOKEN_FILE");
  app.add_flag("--insecure", common.security.insecure,
               "Allow a token to travel unencrypted: for private networks");
  app.add_flag("--json", common.json, "Print JSON: one document, or one a line for watch");
  app.add_flag("--ascii", common.ascii, "No symbols beyond ASCII");
  app.add_option("--color", common.color, "auto, always or never")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, ColorChoice>{{"auto", ColorChoice::kAuto},
                                             {"always", ColorChoice::kAlways},
                                             {"never", ColorChoice::kNever}}));

  const auto command = [&](const char* name, const char* text,
                           const std::function<ExitCode()>& run) {
    CLI::App* sub = app.add_subcommand(name, text);
    sub->fallthrough();  // --json and the like may stand behind the command too.
    sub->callback([&code, &common, run] {
      const absl::Status connection = CheckConnection(common);
      code = connection.ok() ? run() : FailCommandLine(connection);
    });
    return sub;
  };
  std::string job;
  const auto job_command = [&](const char* name, const char* text,
                               const std::function<ExitCode()>& run) {
    CLI::App* sub = command(name, text, run);
    sub->add_option("JOB", job, "The job's name")->required();
    return sub;
  };

  RunOptions run;
  CLI::App* sub =
      command("run", "Run a job here, with a server of its own, and download the result",
              [&] { return RunCommand(common, run); });
  AddJobSource(*sub, run.job);
  sub->add_option(
      "--data-dir", run.data_dir,
      "Folder that keeps jobs, artifacts and the server's log; default: a temporary one");
  sub->add_option("--output", run.output, "Folder for the result; default: qpruner-JOB");
  sub->add_flag("--all", run.all, "Download the intermediate model (prepared/), too");
  sub->add_option("--workers", run.workers, "Local workers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  sub->add_option("--server-program", run.server_program,
                  "The server's program; default: qpruner-server beside this one");

  SubmitOptions submit;
  sub = command("submit", "Queue a job and print its name",
                [&] { return SubmitCommand(common, submit); });
  AddJobSource(*sub, submit.job);
  sub->add_option("--job-id", submit.job_id,
                  "Last part of the job's name; default: the server chooses");
  sub->add_option("--request-id", submit.request_id,
                  "Submitting again with the same id gives the same job");
  CLI::Option* wait =
      sub->add_flag("--wait", submit.wait, "Follow it to its end and print the result");
  CLI::Option* result = sub->add_option("--output", submit.output,
                                        "With --wait: download the result into this folder")
                            ->needs(wait);
  sub->add_flag("--all", submit.all, "With --output: the intermediate model (prepared/), too")
      ->needs(result);

  JobSource validated;
  bool offline = false;
  sub = command("validate", "Check a job file without queueing it",
                [&] { return ValidateCommand(common, validated, offline); });
  AddJobSource(*sub, validated);
  sub->add_flag("--offline", offline, "Only the file's form; ask no server");

  bool as_job_file = false;
  sub = job_command("get", "Show a job", [&] { return GetCommand(common, job, as_job_file); });
  sub->add_flag("--job-file", as_job_file,
                "As a job file that submits the same again, defaults included");

  ListOptions list;
  sub = command("list", "List jobs, newest first", [&] { return ListCommand(common, list); });
  sub->add_option("--state", list.states, "Only jobs in this state; repeatable")
      ->allow_extra_args(false);
  sub->add_option("--label", list.labels, "Only jobs with this KEY=VALUE; repeatable")
      ->allow_extra_args(false);
  sub->add_option("--limit", list.limit, "Jobs at most")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();

  int64_t after = 0;
  sub = job_command("watch", "Follow a job to its end",
                    [&] { return WatchCommand(common, job, after); });
  sub->add_option("--after", after, "Only events after this sequence number")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();

  job_command("cancel", "Stop a job", [&] { return CancelCommand(common, job); });
  job_command("pause", "Take a job's tasks from their workers, until it is resumed",
              [&] { return PauseCommand(common, job); });
  job_command("resume", "Go on with a paused job", [&] { return ResumeCommand(common, job); });
  job_command("delete", "Remove a finished job with all it has",
              [&] { return DeleteCommand(common, job); });
  job_command("trials", "List a job's trials", [&] { return TrialsCommand(common, job); });
  job_command("pareto", "Show a job's Pareto front", [&] { return ParetoCommand(common, job); });
  job_command("artifacts", "List a job's files", [&] { return ArtifactsCommand(common, job); });

  std::vector<std::string> paths;
  std::string output;
  sub = job_command("download", "Download a job's files, resuming what was begun",
                    [&] { return DownloadCommand(common, job, paths, output); });
  sub->add_option("PATH", paths, "Files or folders among the artifacts; default: all");
  sub->add_option("--output", output, "Folder to write to; default: qpruner-JOB");

  command("capabilities", "Show what the server and its workers can do",
          [&] { return CapabilitiesCommand(common); });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kBadInput);
  }
  return static_cast<int>(code);
}

}  // namespace
}  // namespace qpruner

int main(int argc, char** argv) { return qpruner::Main(argc, argv); }
