#include "client/commands.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "client/job_client.h"
#include "client/job_file.h"
#include "client/job_follower.h"
#include "client/job_tables.h"
#include "client/json_output.h"
#include "client/local_server.h"
#include "client/message_reader.h"
#include "client/pareto_plot.h"
#include "client/report_table.h"
#include "client/signal_queue.h"
#include "proto/status_codec.h"

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

void Print(absl::string_view text) { Write(STDOUT_FILENO, text); }
void PrintError(absl::string_view text) {
  Write(STDERR_FILENO, absl::StrCat("qpruner: ", text, "\n"));
}

std::string AddressOf(const std::string& server) {
  if (absl::StrContains(server, ":")) return server;
  return absl::StrCat(server, ":7421");
}

// A connection, and what belongs to it.
class Session {
 public:
  Session(const CommandOptions& common, std::string address)
      : common_(common),
        address_(std::move(address)),
        terminal_(DetectTerminal(STDOUT_FILENO, common.ascii, common.color, kWidest)),
        client_(OpenChannel(address_), ClientOptions(), RealClock(), RealSleeper()) {}
  explicit Session(const CommandOptions& common) : Session(common, AddressOf(common.server)) {}

  const CommandOptions& common() const { return common_; }
  JobClient& client() { return client_; }
  ConnectionNotice& notice() { return notice_; }
  const Terminal& terminal() const { return terminal_; }
  const TextStyle& style() const { return terminal_.style; }

  // Says why and returns what the shell is told.
  ExitCode Fail(const absl::Status& status) const {
    if (ExitCodeOf(status) == ExitCode::kUnreachable) {
      PrintError(absl::StrCat(
          "no answer from the server at ", address_, ": ", std::string(status.message()),
          "\nStart one with qpruner-server, or name one with --server ADDRESS."));
    } else {
      PrintError(std::string(status.message()));
    }
    return ExitCodeOf(status);
  }

 private:
  JobClient::Options ClientOptions() {
    JobClient::Options options;
    options.on_retry = [this](const absl::Status& failure, absl::Duration) {
      notice_.Set(absl::StrCat("No connection to the server; trying again. (",
                               std::string(failure.message()), ")"));
    };
    return options;
  }

  const CommandOptions common_;
  const std::string address_;
  const Terminal terminal_;
  ConnectionNotice notice_;
  JobClient client_;
};

absl::StatusOr<std::string> FullName(const CommandOptions& common, const std::string& job) {
  const std::string name =
      absl::StrContains(job, "/") ? job : absl::StrCat("projects/", common.project, "/jobs/", job);
  ASSIGN_OR_RETURN(const JobName parsed, JobName::Parse(name));
  return parsed.ToString();
}

// A failure that was already printed.
struct Reported {
  ExitCode code;
};

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
    Write(STDERR_FILENO, absl::StrCat("  ", line, "\n"));
  }
  return ExitCode::kBadInput;
}

// Downloads artifacts into `folder`, showing how far it is on a terminal.
absl::Status Download(Session& session, const std::vector<v1::Artifact>& artifacts,
                      const std::string& folder) {
  int64_t total = 0, done = 0;
  for (const v1::Artifact& artifact : artifacts) total += artifact.size_bytes();
  LiveRegion region(Print);
  const bool live = session.terminal().live && !session.common().json;
  absl::Duration drawn = -absl::InfiniteDuration();
  for (const v1::Artifact& artifact : artifacts) {
    // The server chose the name: it must not lead out of the folder.
    absl::StatusOr<ArtifactName> name = ArtifactName::Parse(artifact.name());
    if (!name.ok()) return absl::DataLossError(name.status().message());
    const std::string path = (std::filesystem::path(folder) / name->path).string();
    RETURN_IF_ERROR(session.client().DownloadArtifact(artifact, path, [&](int64_t bytes) {
      if (!live || RealClock().Monotonic() - drawn < absl::Milliseconds(100)) return;
      drawn = RealClock().Monotonic();
      region.Draw(
          {absl::StrFormat("  downloading %s of %s: %s", FormatBytes(done + bytes),
                           FormatBytes(total), Shortened(session.style(), name->path, 40))});
    }));
    done += artifact.size_bytes();
  }
  region.Clear();
  return absl::OkStatus();
}

ParetoPlotOptions PlotOptions(const Session& session, const v1::CompressionJob& job) {
  ParetoPlotOptions plot;
  plot.style = session.style();
  plot.style.width = std::min(plot.style.width, 84);
  plot.budget_bytes = BudgetBytes(job);
  return plot;
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
        Write(STDERR_FILENO, absl::StrCat("  ", Printable(violation.field), ": ",
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
    PrintError(
        absl::StrCat("interrupted; the job goes on. See: qpruner watch ", LastPart(job.name())));
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

// What the stages of a job hand to each other, as opposed to its result. The pruned model in full
// precision: by far the largest of a job's files.
bool IsIntermediate(const v1::Artifact& artifact) {
  return absl::StartsWith(ArtifactPath(artifact), "prepared/");
}

// Downloads the result, or all artifacts, and says where it lies.
ExitCode DownloadResult(Session& session, const std::string& job, const std::string& folder,
                        bool all) {
  absl::StatusOr<std::vector<v1::Artifact>> artifacts = session.client().ListArtifacts(job);
  if (!artifacts.ok()) return session.Fail(artifacts.status());
  if (!all) std::erase_if(*artifacts, IsIntermediate);
  if (absl::Status status = Download(session, *artifacts, folder); !status.ok()) {
    PrintError(std::string(status.message()));
    return absl::IsUnavailable(status) ? ExitCode::kUnreachable : ExitCode::kFileTrouble;
  }
  if (!session.common().json) {
    Print(absl::StrCat("\n  ", Painted(session.style(), Paint::kBold, "Artifacts"), "\n",
                       FormatDownloads(*artifacts, folder, session.style())));
  }
  return ExitCode::kOk;
}

// For commands that read one thing and print it.
template <typename Message, typename Format>
ExitCode PrintAnswer(const Session& session, const absl::StatusOr<Message>& answer,
                     const Format& format) {
  if (!answer.ok()) return session.Fail(answer.status());
  Print(session.common().json ? absl::StrCat(ToJson(*answer, /*indented=*/true), "\n")
                              : format(*answer));
  return ExitCode::kOk;
}

ExitCode FailName(const absl::Status& status) {
  PrintError(std::string(status.message()));
  return ExitCode::kBadInput;
}

}  // namespace

ExitCode RunCommand(const CommandOptions& common, const RunOptions& options) {
  ExitCode code = ExitCode::kOk;
  std::optional<JobFile> file = LoadJob(options.job, &code);
  if (!file) return code;
  // Before any thread starts.
  absl::StatusOr<std::unique_ptr<SignalQueue>> signals = SignalQueue::Create();
  if (!signals.ok()) return FailName(signals.status());

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
  absl::StatusOr<v1::CompressionJob> job = session.client().CreateJob(request);
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
  return DownloadResult(session, job->name(), folder, options.all);
}

ExitCode SubmitCommand(const CommandOptions& common, const SubmitOptions& options) {
  ExitCode code = ExitCode::kOk;
  std::optional<JobFile> file = LoadJob(options.job, &code);
  if (!file) return code;
  std::unique_ptr<SignalQueue> signals;
  if (options.wait) {
    absl::StatusOr<std::unique_ptr<SignalQueue>> created = SignalQueue::Create();
    if (!created.ok()) return FailName(created.status());
    signals = *std::move(created);
  }
  Session session(common);
  v1::CreateJobRequest request;
  request.set_parent(absl::StrCat("projects/", common.project));
  request.set_job_id(options.job_id);
  request.set_request_id(options.request_id);
  *request.mutable_job() = file->job;
  absl::StatusOr<v1::CompressionJob> job = session.client().CreateJob(request);
  if (!job.ok()) return FailJob(session, job.status(), *file);
  if (!options.wait) {
    Print(common.json ? absl::StrCat(ToJson(*job, /*indented=*/true), "\n")
                      : absl::StrCat(job->name(), "\n"));
    return ExitCode::kOk;
  }
  if (!common.json) Print(absl::StrCat(job->name(), "\n"));
  const Waited waited = Wait(session, *job, *signals, {});
  if (waited.code != ExitCode::kOk || options.output.empty()) return waited.code;
  return DownloadResult(session, job->name(), options.output, options.all);
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

ExitCode GetCommand(const CommandOptions& common, const std::string& job, bool as_job_file) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  return PrintAnswer(session, session.client().GetJob(*name), [&](const v1::CompressionJob& found) {
    if (as_job_file) return FormatJobFile(found);
    std::string out = FormatJob(found, session.style());
    if (found.report().rows_size() > 0) {
      absl::StrAppend(&out, "\n", FormatReport(found.report(), session.style()));
    }
    return out;
  });
}

ExitCode ListCommand(const CommandOptions& common, const ListOptions& options) {
  v1::ListJobsRequest request;
  request.set_parent(absl::StrCat("projects/", common.project));
  for (const std::string& state : options.states) {
    v1::CompressionJob::State value;
    if (!v1::CompressionJob::State_Parse(absl::AsciiStrToUpper(state), &value) ||
        value == v1::CompressionJob::STATE_UNSPECIFIED) {
      return FailName(absl::InvalidArgumentError(
          absl::StrCat("--state ", state,
                       ": must be pending, running, cancelling, succeeded, failed or cancelled")));
    }
    request.add_states(value);
  }
  for (const std::string& label : options.labels) {
    const std::vector<std::string> parts = absl::StrSplit(label, absl::MaxSplits('=', 1));
    if (parts.size() != 2 || parts[0].empty()) {
      return FailName(
          absl::InvalidArgumentError(absl::StrCat("--label ", label, ": must be KEY=VALUE")));
    }
    (*request.mutable_labels())[parts[0]] = parts[1];
  }
  Session session(common);
  v1::ListJobsResponse all;
  while (all.jobs_size() < options.limit) {
    request.set_page_size(std::min(500, options.limit - all.jobs_size()));
    absl::StatusOr<v1::ListJobsResponse> page = session.client().ListJobs(request);
    if (!page.ok()) return session.Fail(page.status());
    all.mutable_jobs()->MergeFrom(page->jobs());
    all.set_next_page_token(page->next_page_token());
    request.set_page_token(page->next_page_token());
    if (page->next_page_token().empty()) break;
  }
  if (common.json) {
    Print(absl::StrCat(ToJson(all, true), "\n"));
  } else if (all.jobs_size() == 0) {
    Print("No jobs.\n");
  } else {
    Print(FormatJobs({all.jobs().begin(), all.jobs().end()}, session.style()));
    if (!all.next_page_token().empty()) Print("There are more: see --limit.\n");
  }
  return ExitCode::kOk;
}

ExitCode WatchCommand(const CommandOptions& common, const std::string& job,
                      int64_t after_sequence) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  absl::StatusOr<std::unique_ptr<SignalQueue>> signals = SignalQueue::Create();
  if (!signals.ok()) return FailName(signals.status());
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

ExitCode CancelCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  return PrintAnswer(
      session, session.client().CancelJob(*name), [](const v1::CompressionJob& found) {
        return absl::StrCat(LastPart(found.name()), " is ", StateName(found.state()), "\n");
      });
}

ExitCode DeleteCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  if (absl::Status status = session.client().DeleteJob(*name); !status.ok()) {
    return session.Fail(status);
  }
  Print(common.json ? "{}\n" : absl::StrCat(LastPart(*name), " is deleted\n"));
  return ExitCode::kOk;
}

ExitCode TrialsCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  absl::StatusOr<std::vector<v1::Trial>> trials = session.client().ListTrials(*name);
  if (!trials.ok()) return session.Fail(trials.status());
  if (common.json) {
    v1::ListTrialsResponse response;
    for (const v1::Trial& trial : *trials) *response.add_trials() = trial;
    Print(absl::StrCat(ToJson(response, true), "\n"));
    return ExitCode::kOk;
  }
  absl::StatusOr<v1::ParetoFront> front = session.client().GetParetoFront(*name);
  if (!front.ok()) return session.Fail(front.status());
  Print(trials->empty() ? "No trials yet.\n" : FormatTrials(*trials, *front, session.style()));
  return ExitCode::kOk;
}

ExitCode ParetoCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  absl::StatusOr<v1::ParetoFront> front = session.client().GetParetoFront(*name);
  if (!front.ok() || common.json)
    return PrintAnswer(session, front, [](const auto&) { return ""; });
  absl::StatusOr<v1::CompressionJob> found = session.client().GetJob(*name);
  if (!found.ok()) return session.Fail(found.status());
  absl::StatusOr<std::vector<v1::Trial>> trials = session.client().ListTrials(*name);
  if (!trials.ok()) return session.Fail(trials.status());
  Print(absl::StrCat(PlotParetoFront(*front, *trials, PlotOptions(session, *found)), "\n",
                     front->points_size() == 0 ? "" : FormatFront(*front, session.style())));
  return ExitCode::kOk;
}

ExitCode ArtifactsCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  absl::StatusOr<std::vector<v1::Artifact>> artifacts = session.client().ListArtifacts(*name);
  if (!artifacts.ok()) return session.Fail(artifacts.status());
  if (common.json) {
    v1::ListArtifactsResponse response;
    for (const v1::Artifact& artifact : *artifacts) *response.add_artifacts() = artifact;
    Print(absl::StrCat(ToJson(response, true), "\n"));
  } else {
    Print(artifacts->empty() ? "No artifacts yet.\n"
                             : FormatArtifacts(*artifacts, session.style()));
  }
  return ExitCode::kOk;
}

ExitCode DownloadCommand(const CommandOptions& common, const std::string& job,
                         const std::vector<std::string>& paths, const std::string& output) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailName(name.status());
  Session session(common);
  absl::StatusOr<std::vector<v1::Artifact>> artifacts = session.client().ListArtifacts(*name);
  if (!artifacts.ok()) return session.Fail(artifacts.status());
  std::vector<v1::Artifact> wanted;
  if (paths.empty()) wanted = *artifacts;
  std::vector<std::string> known;
  for (const v1::Artifact& artifact : *artifacts) known.push_back(ArtifactPath(artifact));
  for (const std::string& given : paths) {
    const std::string path(absl::StripSuffix(given, "/"));
    bool found = false;
    for (const v1::Artifact& artifact : *artifacts) {
      if (ArtifactPath(artifact) != path && !absl::StartsWith(ArtifactPath(artifact), path + "/")) {
        continue;
      }
      found = true;
      wanted.push_back(artifact);
    }
    if (!found) {
      const std::string closest = ClosestName(path, known);
      return session.Fail(absl::NotFoundError(
          absl::StrCat("no artifact ", path, " of ", *name,
                       closest.empty() ? absl::StrCat("; see: qpruner artifacts ", job)
                                       : absl::StrCat("; did you mean ", closest, "?"))));
    }
  }
  const std::string folder = output.empty() ? absl::StrCat("qpruner-", LastPart(*name)) : output;
  if (absl::Status status = Download(session, wanted, folder); !status.ok()) {
    const ExitCode code = ExitCodeOf(status);
    if (code == ExitCode::kUnreachable) return session.Fail(status);
    PrintError(std::string(status.message()));
    return code == ExitCode::kNotFound ? code : ExitCode::kFileTrouble;
  }
  if (common.json) {
    v1::ListArtifactsResponse response;
    for (const v1::Artifact& artifact : wanted) *response.add_artifacts() = artifact;
    nlohmann::json json = nlohmann::json::parse(ToJson(response, false));
    json["folder"] = folder;
    Print(absl::StrCat(json.dump(1), "\n"));
  } else {
    Print(FormatDownloads(wanted, folder, session.style()));
  }
  return ExitCode::kOk;
}

ExitCode CapabilitiesCommand(const CommandOptions& common) {
  Session session(common);
  return PrintAnswer(session, session.client().ListCapabilities(),
                     [&](const v1::ListCapabilitiesResponse& capabilities) {
                       return FormatCapabilities(capabilities, session.style());
                     });
}

}  // namespace qpruner
