// The commands that take a job file, or follow a job to its end.
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "client/cancel_on_signal.h"
#include "client/commands.h"
#include "client/job_download.h"
#include "client/job_file.h"
#include "client/job_follower.h"
#include "client/job_tables.h"
#include "client/local_server.h"
#include "client/pareto_plot.h"
#include "client/report_table.h"
#include "client/session.h"
#include "client/signal_queue.h"
#include "proto/status_codec.h"

namespace qpruner {
namespace {

// Reads a job file with its overrides; prints what is wrong with it.
std::optional<JobFile> LoadJob(const JobSource& source, ExitCode* code) {
  absl::StatusOr<JobFile> file = ReadJobFile(source.path);
  if (!file.ok()) {
    PrintError(std::string(file.status().message()));
    *code = absl::IsNotFound(file.status()) ? ExitCode::kNotFound
            : absl::IsInvalidArgument(file.status()) || absl::IsResourceExhausted(file.status())
                ? ExitCode::kBadInput
                : ExitCode::kFileTrouble;
    return std::nullopt;
  }
  v1::CompressionSpec& spec = *file->job.mutable_spec();
  if (!source.model.empty()) spec.mutable_model()->set_uri(LocalUri(source.model, "."));
  if (!source.text.empty()) {
    const std::string uri = LocalUri(source.text, ".");
    spec.mutable_calibration()->mutable_dataset()->set_uri(uri);
    spec.mutable_fine_tune()->mutable_dataset()->set_uri(uri);
    spec.mutable_evaluation()->mutable_dataset()->set_uri(uri);
  }
  for (const std::string& assignment : source.overrides) {
    if (absl::Status status = ApplyOverride(assignment, *file); !status.ok()) {
      PrintError(std::string(status.message()));
      *code = ExitCode::kBadInput;
      return std::nullopt;
    }
  }
  return *std::move(file);
}

// Says what the server has against a job.
ExitCode FailJob(const Session& session, const absl::Status& status, const JobFile& file) {
  if (!absl::IsInvalidArgument(status)) return session.Fail(status);
  PrintError("the server refuses this job");
  for (const std::string& line : DescribeJobError(status, file)) {
    PrintErrorDetail(absl::StrCat("  ", line, "\n"));
  }
  return ExitCode::kBadInput;
}

// The picture and the table of a job that SUCCEEDED.
absl::Status PrintResult(Session& session, const v1::CompressionJob& job) {
  ASSIGN_OR_RETURN(const v1::ParetoFront front, session.client().GetParetoFront(job.name()));
  ASSIGN_OR_RETURN(const std::vector<v1::Trial> trials, session.client().ListTrials(job.name()));
  std::string out = absl::StrCat("\n", PlotParetoFront(front, trials, PlotOptions(session, job)),
                                 "\n", FormatReport(job.report(), session.style()));
  for (const v1::Trial& trial : trials) {
    if (trial.name() != job.report().chosen_trial()) continue;
    const std::string map = FormatPrecisionMap(trial, session.style());
    if (map.empty()) continue;
    absl::StrAppend(&out, "\n  ",
                    Painted(session.style(), Paint::kBold, "Bits of each group, chosen"), "\n",
                    map);
  }
  Print(out);
  return absl::OkStatus();
}

// Says how a job that was waited for ended.
ExitCode PrintEnd(Session& session, const v1::CompressionJob& job) {
  if (session.common().json) {
    Print(absl::StrCat(ToJson(job, /*indented=*/true), "\n"));
    return ExitCodeOf(job.state());
  }
  switch (job.state()) {
    case v1::CompressionJob::SUCCEEDED:
      if (absl::Status status = PrintResult(session, job); !status.ok())
        return session.Fail(status);
      break;
    case v1::CompressionJob::FAILED: {
      PrintError(absl::StrCat("the job failed: ", Printable(job.error().message())));
      for (const FieldViolation& violation : FieldViolations(FromRpcStatus(job.error()))) {
        PrintErrorDetail(absl::StrCat("  ", Printable(violation.field), ": ",
                                      Printable(violation.description), "\n"));
      }
      break;
    }
    case v1::CompressionJob::CANCELLED:
      PrintError("the job was cancelled");
      break;
    default:
      PrintError(absl::StrCat("the job is ", StateName(job.state())));
  }
  return ExitCodeOf(job.state());
}

struct Waited {
  ExitCode code = ExitCode::kOk;
  // Set if the job has ended.
  std::optional<v1::CompressionJob> job;
};

// Follows a job and says how it ended.
Waited Wait(Session& session, const v1::CompressionJob& job, SignalQueue& signals,
            FollowOptions options) {
  options.terminal = session.terminal();
  // Unlike a picture, what is drawn live may use the whole line.
  options.write = Print;
  if (session.common().json) {
    options.output = FollowOutput::kQuiet;
  } else {
    options.output = session.terminal().live ? FollowOutput::kLive : FollowOutput::kPlain;
  }
  const FollowResult followed =
      FollowJob(session.client(), job, signals, session.notice(), options);
  if (absl::IsCancelled(followed.status)) {
    PrintError(options.interrupt == InterruptPolicy::kCancelJob
                   ? std::string("interrupted, before the job had ended")
                   : absl::StrCat("interrupted; the job goes on. See: qpruner watch ",
                                  LastPart(job.name())));
    return {ExitCode::kInterrupted, std::nullopt};
  }
  if (!followed.status.ok()) return {session.Fail(followed.status), std::nullopt};
  absl::StatusOr<v1::CompressionJob> ended = session.client().GetJob(job.name());
  if (!ended.ok()) return {session.Fail(ended.status()), std::nullopt};
  Waited waited;
  waited.code = PrintEnd(session, *ended);
  waited.job = *std::move(ended);
  return waited;
}

// Ctrl-C ends the wait for a server that is busy or away, where `signals` takes it.
absl::StatusOr<v1::CompressionJob> Create(Session& session, const v1::CreateJobRequest& request,
                                          SignalQueue* signals) {
  if (signals == nullptr) return session.client().CreateJob(request);
  CancelOnSignal interrupt(*signals);
  return session.client().CreateJob(request, &interrupt.cancellation());
}

}  // namespace

ExitCode RunCommand(const CommandOptions& common, const RunOptions& options) {
  ExitCode code = ExitCode::kOk;
  std::optional<JobFile> file = LoadJob(options.job, &code);
  if (!file) return code;
  // Before any thread starts.
  absl::StatusOr<std::unique_ptr<SignalQueue>> signals = SignalQueue::Create();
  if (!signals.ok()) return FailCommandLine(signals.status());

  LocalServer::Options server_options;
  server_options.program = options.server_program;
  server_options.data_dir = options.data_dir;
  server_options.workers = options.workers;
  server_options.interrupted = [&] { return (*signals)->Next(absl::ZeroDuration()) != 0; };
  absl::StatusOr<std::unique_ptr<LocalServer>> server = LocalServer::Start(server_options);
  if (!server.ok()) {
    PrintError(std::string(server.status().message()));
    return absl::IsCancelled(server.status())  ? ExitCode::kInterrupted
           : absl::IsNotFound(server.status()) ? ExitCode::kNotFound
                                               : ExitCode::kUnreachable;
  }

  Session session(common, (*server)->address());
  v1::CreateJobRequest request;
  request.set_parent(absl::StrCat("projects/", common.project));
  *request.mutable_job() = file->job;
  absl::StatusOr<v1::CompressionJob> job = Create(session, request, signals->get());
  if (!job.ok()) return FailJob(session, job.status(), *file);

  FollowOptions follow;
  follow.interrupt = InterruptPolicy::kCancelJob;
  follow.check = [&] {
    if ((*server)->IsRunning()) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("the local server ended by itself. Its log ends:\n", (*server)->LogTail()));
  };
  const Waited waited = Wait(session, *job, **signals, follow);
  if (!waited.job || waited.code != ExitCode::kOk) return waited.code;
  const std::string folder =
      options.output.empty() ? absl::StrCat("qpruner-", LastPart(job->name())) : options.output;
  return DownloadResult(session, job->name(), folder, options.all, **signals);
}

ExitCode SubmitCommand(const CommandOptions& common, const SubmitOptions& options) {
  ExitCode code = ExitCode::kOk;
  std::optional<JobFile> file = LoadJob(options.job, &code);
  if (!file) return code;
  std::unique_ptr<SignalQueue> signals;
  if (options.wait) {
    absl::StatusOr<std::unique_ptr<SignalQueue>> created = SignalQueue::Create();
    if (!created.ok()) return FailCommandLine(created.status());
    signals = *std::move(created);
  }
  Session session(common);
  v1::CreateJobRequest request;
  request.set_parent(absl::StrCat("projects/", common.project));
  request.set_job_id(options.job_id);
  request.set_request_id(options.request_id);
  *request.mutable_job() = file->job;
  absl::StatusOr<v1::CompressionJob> job = Create(session, request, signals.get());
  if (!job.ok()) return FailJob(session, job.status(), *file);
  if (!options.wait) {
    Print(common.json ? absl::StrCat(ToJson(*job, /*indented=*/true), "\n")
                      : absl::StrCat(job->name(), "\n"));
    return ExitCode::kOk;
  }
  if (!common.json) Print(absl::StrCat(job->name(), "\n"));
  const Waited waited = Wait(session, *job, *signals, {});
  if (waited.code != ExitCode::kOk || options.output.empty()) return waited.code;
  return DownloadResult(session, job->name(), options.output, options.all, *signals);
}

ExitCode ValidateCommand(const CommandOptions& common, const JobSource& source, bool offline) {
  ExitCode code = ExitCode::kOk;
  std::optional<JobFile> file = LoadJob(source, &code);
  if (!file) return code;
  if (offline) {
    Print(common.json ? absl::StrCat(ToJson(file->job, true), "\n")
                      : absl::StrCat(file->source, ": well formed (the server was not asked)\n"));
    return ExitCode::kOk;
  }
  Session session(common);
  v1::CreateJobRequest request;
  request.set_parent(absl::StrCat("projects/", common.project));
  request.set_validate_only(true);
  *request.mutable_job() = file->job;
  absl::StatusOr<v1::CompressionJob> job = session.client().CreateJob(request);
  if (!job.ok()) return FailJob(session, job.status(), *file);
  Print(common.json ? absl::StrCat(ToJson(*job, true), "\n")
                    : absl::StrCat(file->source, ": good\n"));
  return ExitCode::kOk;
}

ExitCode WatchCommand(const CommandOptions& common, const std::string& job,
                      int64_t after_sequence) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailCommandLine(name.status());
  absl::StatusOr<std::unique_ptr<SignalQueue>> signals = SignalQueue::Create();
  if (!signals.ok()) return FailCommandLine(signals.status());
  Session session(common);
  absl::StatusOr<v1::CompressionJob> found = session.client().GetJob(*name);
  if (!found.ok()) return session.Fail(found.status());
  FollowOptions follow;
  follow.after_sequence = after_sequence;
  if (!common.json) return Wait(session, *found, **signals, follow).code;

  follow.output = FollowOutput::kJsonLines;
  follow.terminal = session.terminal();
  follow.write = Print;
  const FollowResult followed =
      FollowJob(session.client(), *found, **signals, session.notice(), follow);
  if (absl::IsCancelled(followed.status)) return ExitCode::kInterrupted;
  if (!followed.status.ok()) return session.Fail(followed.status);
  return ExitCodeOf(followed.view.state());
}

}  // namespace qpruner
