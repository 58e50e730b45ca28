#include "tests/faults/job_invariants.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "tests/faults/followed_job.h"

namespace qpruner {
namespace {

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
}

absl::Status Broken(const v1::JobEvent& event, absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat(what, ", at event ", event.sequence(), ": ", event.ShortDebugString()));
}

}  // namespace

absl::Status CheckEvents(const std::vector<v1::JobEvent>& events) {
  int64_t last_sequence = 0;
  int final_count = 0;
  // Of each trial: the worker and attempt of its last lease, and whether it is finished.
  struct Leased {
    std::string worker;
    int attempt = 0;
    bool finished = false;
  };
  std::map<int, Leased> trials;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() != ++last_sequence) return Broken(event, "a gap or a repetition");
    if (final_count > 0) return Broken(event, "an event after the end");
    if (event.has_state_changed() && IsFinalState(event.state_changed().state())) ++final_count;
    if (!event.has_trial_updated()) continue;
    const v1::Trial& trial = event.trial_updated();
    Leased& leased = trials[trial.index()];
    if (leased.finished) return Broken(event, "a finished trial changes");
    switch (trial.state()) {
      case v1::Trial::RUNNING:
        if (trial.attempt_count() != leased.attempt + 1) {
          return Broken(event, "attempts do not count up by one");
        }
        leased = {.worker = trial.worker(), .attempt = trial.attempt_count()};
        break;
      case v1::Trial::SUCCEEDED:
        leased.finished = true;
        if (trial.worker() != leased.worker || trial.attempt_count() != leased.attempt) {
          return Broken(event, "a result of an attempt that is not the current one");
        }
        break;
      default:
        break;
    }
  }
  if (final_count != 1) {
    return absl::DataLossError(
        absl::StrCat(final_count, " final states in ", events.size(), " events"));
  }
  return absl::OkStatus();
}

absl::Status CheckReplay(const std::vector<v1::JobEvent>& received,
                         const std::vector<v1::JobEvent>& stored) {
  for (size_t i = 0; i < std::max(received.size(), stored.size()); ++i) {
    const std::string a = i < received.size() ? received[i].ShortDebugString() : "nothing";
    const std::string b = i < stored.size() ? stored[i].ShortDebugString() : "nothing";
    if (a != b) return absl::DataLossError(absl::StrCat("received ", a, ", stored ", b));
  }
  return absl::OkStatus();
}

absl::Status DownloadAndCheck(v1::JobService::StubInterface& jobs, const v1::Artifact& artifact) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::DownloadArtifactRequest request;
  request.set_name(artifact.name());
  const auto stream = jobs.DownloadArtifact(&context, request);
  Sha256 hash;
  int64_t size = 0;
  for (v1::DownloadArtifactResponse chunk; stream->Read(&chunk);) {
    hash.Update(chunk.data());
    size += static_cast<int64_t>(chunk.data().size());
  }
  RETURN_IF_ERROR(FromGrpcStatus(stream->Finish()));
  if (size != artifact.size_bytes() || hash.HexDigest() != artifact.sha256()) {
    return absl::DataLossError(absl::StrCat("sent as good, but damaged: ", artifact.name()));
  }
  return absl::OkStatus();
}

absl::Status CheckArtifacts(v1::JobService::StubInterface& jobs, const std::string& job) {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::ListArtifactsRequest request;
  request.set_parent(job);
  v1::ListArtifactsResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(jobs.ListArtifacts(&context, request, &response)));
  for (const v1::Artifact& artifact : response.artifacts()) {
    RETURN_IF_ERROR(DownloadAndCheck(jobs, artifact));
  }
  return absl::OkStatus();
}

}  // namespace qpruner
