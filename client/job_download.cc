#include "client/job_download.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "client/cancel_on_signal.h"
#include "client/job_tables.h"

namespace qpruner {
namespace {

// What the stages of a job hand to each other and what it was made from, as opposed to its result:
// by far the largest of a job's files.
bool IsIntermediate(const v1::Artifact& artifact) {
  const std::string path = ArtifactPath(artifact);
  return absl::StartsWith(path, "prepared/") || absl::StartsWith(path, "source/");
}

}  // namespace

absl::Status Download(Session& session, const std::vector<v1::Artifact>& artifacts,
                      const std::string& folder, Cancellation* cancellation) {
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
    const auto draw = [&](int64_t bytes) {
      if (!live || RealClock().Monotonic() - drawn < absl::Milliseconds(100)) return;
      drawn = RealClock().Monotonic();
      region.Draw(
          {absl::StrFormat("  downloading %s of %s: %s", FormatBytes(done + bytes),
                           FormatBytes(total), Shortened(session.style(), name->path, 40))});
    };
    RETURN_IF_ERROR(session.client().DownloadArtifact(artifact, path, draw, cancellation));
    done += artifact.size_bytes();
  }
  region.Clear();
  return absl::OkStatus();
}

ExitCode DownloadResult(Session& session, const std::string& job, const std::string& folder,
                        bool all, SignalQueue& signals) {
  absl::StatusOr<std::vector<v1::Artifact>> artifacts = session.client().ListArtifacts(job);
  if (!artifacts.ok()) return session.Fail(artifacts.status());
  if (!all) std::erase_if(*artifacts, IsIntermediate);
  CancelOnSignal interrupt(signals);
  if (absl::Status status = Download(session, *artifacts, folder, &interrupt.cancellation());
      absl::IsCancelled(status)) {
    PrintError("interrupted; the same download into the same folder goes on where this one ended");
    return ExitCode::kInterrupted;
  } else if (!status.ok()) {
    PrintError(std::string(status.message()));
    return absl::IsUnavailable(status) ? ExitCode::kUnreachable : ExitCode::kFileTrouble;
  }
  if (!session.common().json) {
    Print(absl::StrCat("\n  ", Painted(session.style(), Paint::kBold, "Artifacts"), "\n",
                       FormatDownloads(*artifacts, folder, session.style())));
  }
  return ExitCode::kOk;
}

}  // namespace qpruner
