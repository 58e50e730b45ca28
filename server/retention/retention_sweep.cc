#include "server/retention/retention_sweep.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/resource_name.h"
#include "base/status_macros.h"
#include "server/queue/job_change.h"
#include "server/queue/job_states.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr int kJobsAtOnce = 50;
constexpr size_t kArtifactsAtOnce = 500;

// NOT_FOUND: another server was quicker, or a client. DATA_LOSS: a row of the job cannot be read,
// as the store has logged; it stays, and the sweep goes on.
absl::Status UnlessGoneOrDamaged(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsDataLoss(status) ? absl::OkStatus() : status;
}

}  // namespace

absl::Status RetentionSweep::Run(const std::function<bool()>& stopping) {
  RETURN_IF_ERROR(SweepJobs(stopping));
  RETURN_IF_ERROR(artifacts_.RemoveAbandonedWrites(clock_.Now() - policy_.keep_unreferenced));
  return SweepArtifacts(stopping);
}

absl::Status RetentionSweep::SweepJobs(const std::function<bool()>& stopping) {
  const absl::Duration soonest = std::min(policy_.keep_finished_jobs, policy_.keep_intermediates);
  if (soonest == absl::InfiniteDuration()) return absl::OkStatus();
  const absl::Time now = clock_.Now();
  StoreReader::JobsByAge page;
  while (!stopping()) {
    const int64_t position = page.position;
    RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(page, reader.OldestJobs(position, kJobsAtOnce));
      return absl::OkStatus();
    }));
    for (const internal::v1::JobRecord& record : page.jobs) {
      const v1::CompressionJob& job = record.job();
      // Those that follow were made later, and ended later than that.
      if (FromTimestamp(job.create_time()) > now - soonest) return absl::OkStatus();
      if (!IsFinal(job.state()) || stopping()) continue;
      ASSIGN_OR_RETURN(const JobName name, JobName::Parse(job.name()));
      const absl::Time end = FromTimestamp(job.end_time());
      if (end <= now - policy_.keep_finished_jobs) {
        const absl::Status deleted = queue_.DeleteJob(name);
        if (deleted.ok()) {
          observer_.OnJobExpired();
          spdlog::info("{}: was finished for {} and is deleted", name.ToString(),
                       absl::FormatDuration(now - end));
        }
        RETURN_IF_ERROR(UnlessGoneOrDamaged(deleted));
      } else if (end <= now - policy_.keep_intermediates && !record.intermediates_dropped()) {
        RETURN_IF_ERROR(UnlessGoneOrDamaged(queue_.DropIntermediates(name)));
      }
    }
    if (page.position == position) return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status RetentionSweep::SweepArtifacts(const std::function<bool()>& stopping) {
  ArtifactReferences& references = queue_.references();
  ASSIGN_OR_RETURN(const absl::Time settled, references.SettledBefore(clock_.Now()));
  const absl::Time stored_until = std::min(settled, clock_.Now() - policy_.keep_unreferenced);
  int64_t count = 0;
  int64_t bytes = 0;
  std::vector<StoredArtifact> old;
  const auto collect = [&]() -> absl::Status {
    // Most of them are listed: those are told apart under no lock.
    std::vector<StoredArtifact> unreferenced;
    RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
      unreferenced.clear();
      for (const StoredArtifact& artifact : old) {
        ASSIGN_OR_RETURN(const bool referenced, reader.IsArtifactReferenced(artifact.sha256));
        if (!referenced) unreferenced.push_back(artifact);
      }
      return absl::OkStatus();
    }));
    old.clear();
    for (const StoredArtifact& artifact : unreferenced) {
      if (stopping()) break;
      ASSIGN_OR_RETURN(const bool removed,
                       references.RemoveIfUnreferenced(artifact.sha256, stored_until));
      if (!removed) continue;
      ++count;
      bytes += artifact.size_bytes;
    }
    return absl::OkStatus();
  };
  absl::Status status = artifacts_.List([&](const StoredArtifact& artifact) -> absl::Status {
    if (stopping()) return absl::CancelledError("Stopping");
    if (artifact.store_time <= stored_until) old.push_back(artifact);
    return old.size() < kArtifactsAtOnce ? absl::OkStatus() : collect();
  });
  if (status.ok()) status = collect();
  if (count > 0) spdlog::info("collected {} artifacts that no job lists: {} bytes", count, bytes);
  return stopping() ? absl::OkStatus() : status;
}

}  // namespace qpruner::server
