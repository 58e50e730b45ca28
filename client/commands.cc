#include "client/commands.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/job_client.h"
#include "client/job_download.h"
#include "client/job_file.h"
#include "client/job_tables.h"
#include "client/json_output.h"
#include "client/message_reader.h"
#include "client/pareto_plot.h"
#include "client/report_table.h"
#include "client/session.h"

namespace qpruner {
namespace {

// A call that puts the job into another state, and says which.
ExitCode MoveCommand(const CommandOptions& common, const std::string& job,
                     absl::StatusOr<v1::CompressionJob> (JobClient::*move)(const std::string&)) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailCommandLine(name.status());
  Session session(common);
  return PrintAnswer(session, (session.client().*move)(*name), [](const v1::CompressionJob& found) {
    return absl::StrCat(LastPart(found.name()), " is ", StateName(found.state()), "\n");
  });
}

}  // namespace

ExitCode GetCommand(const CommandOptions& common, const std::string& job, bool as_job_file) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailCommandLine(name.status());
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
      return FailCommandLine(absl::InvalidArgumentError(
          absl::StrCat("--state ", state,
                       ": must be pending, running, pausing, paused, cancelling, succeeded, failed "
                       "or cancelled")));
    }
    request.add_states(value);
  }
  for (const std::string& label : options.labels) {
    const std::vector<std::string> parts = absl::StrSplit(label, absl::MaxSplits('=', 1));
    if (parts.size() != 2 || parts[0].empty()) {
      return FailCommandLine(
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

ExitCode CancelCommand(const CommandOptions& common, const std::string& job) {
  return MoveCommand(common, job, &JobClient::CancelJob);
}

ExitCode PauseCommand(const CommandOptions& common, const std::string& job) {
  return MoveCommand(common, job, &JobClient::PauseJob);
}

ExitCode ResumeCommand(const CommandOptions& common, const std::string& job) {
  return MoveCommand(common, job, &JobClient::ResumeJob);
}

ExitCode DeleteCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailCommandLine(name.status());
  Session session(common);
  if (absl::Status status = session.client().DeleteJob(*name); !status.ok()) {
    return session.Fail(status);
  }
  Print(common.json ? "{}\n" : absl::StrCat(LastPart(*name), " is deleted\n"));
  return ExitCode::kOk;
}

ExitCode TrialsCommand(const CommandOptions& common, const std::string& job) {
  absl::StatusOr<std::string> name = FullName(common, job);
  if (!name.ok()) return FailCommandLine(name.status());
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
  if (!name.ok()) return FailCommandLine(name.status());
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
  if (!name.ok()) return FailCommandLine(name.status());
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
  if (!name.ok()) return FailCommandLine(name.status());
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
