#include "server/queue/project_quotas.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"

namespace qpruner::server {
namespace {

constexpr absl::Duration kCountInterval = absl::Seconds(1);
// When to try again: jobs start and end within seconds to minutes, space is freed by people.
constexpr absl::Duration kQueueRetry = absl::Seconds(10);
constexpr absl::Duration kSpaceRetry = absl::Minutes(5);
// Projects that are remembered: their names come from clients.
constexpr size_t kMaxProjects = 10'000;

}  // namespace

absl::Status ProjectQuotas::Count(const std::string& project) {
  const absl::Duration now = clock_.Monotonic();
  Usage before, all_before;
  {
    absl::MutexLock lock(&mutex_);
    if (projects_.size() >= kMaxProjects && !projects_.contains(project)) projects_.clear();
    before = projects_[project];
    all_before = all_;
  }
  if (now - before.counted < kCountInterval && now - all_before.counted < kCountInterval) {
    return absl::OkStatus();
  }
  StoreReader::QueueUsage stored;
  RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(stored, reader.Usage(project));
    return absl::OkStatus();
  }));
  absl::MutexLock lock(&mutex_);
  // What was reserved and may or may not have been in the store by then counts as if it was not.
  const auto renew = [now](Usage& usage, const Usage& before, int64_t queued_jobs) {
    usage.counted = now;
    usage.queued_jobs = queued_jobs + before.unsettled + (usage.reserved - before.reserved);
  };
  Usage& usage = projects_[project];
  renew(usage, before, stored.project_queued_jobs);
  usage.artifact_bytes = stored.project_artifact_bytes;
  renew(all_, all_before, stored.queued_jobs);
  return absl::OkStatus();
}

void ProjectQuotas::SetPolicies(ProjectPolicies policies) {
  absl::MutexLock lock(&mutex_);
  policies_ = std::move(policies);
}

absl::Status ProjectQuotas::Reserve(const std::string& project) {
  RETURN_IF_ERROR(Count(project));
  absl::MutexLock lock(&mutex_);
  const ProjectPolicy& policy = policies_.Of(project);
  Usage& usage = projects_[project];
  const std::string subject = absl::StrCat("projects/", project);
  if (policy.max_queued_jobs > 0 && usage.queued_jobs >= policy.max_queued_jobs) {
    return QuotaError("PROJECT_QUEUE_FULL", subject,
                      absl::StrCat("The project's queue is full: ", policy.max_queued_jobs,
                                   " jobs wait or are paused. Try again when some have started, or "
                                   "cancel some"),
                      kQueueRetry);
  }
  if (policy.max_artifact_bytes > 0 && usage.artifact_bytes >= policy.max_artifact_bytes) {
    return QuotaError(
        "PROJECT_SPACE_USED_UP", subject,
        absl::StrCat("The project's artifacts take ", usage.artifact_bytes, " of ",
                     policy.max_artifact_bytes, " bytes. Delete jobs that are not needed any more"),
        kSpaceRetry);
  }
  if (all_.queued_jobs >= policies_.max_queued_jobs) {
    return QuotaError("QUEUE_FULL", "server",
                      absl::StrCat("The server's queue is full: ", policies_.max_queued_jobs,
                                   " jobs wait or are paused. Try again later"),
                      kQueueRetry);
  }
  for (Usage* counted : {&usage, &all_}) {
    ++counted->queued_jobs;
    ++counted->unsettled;
    ++counted->reserved;
  }
  return absl::OkStatus();
}

void ProjectQuotas::Settle(const std::string& project, bool created) {
  absl::MutexLock lock(&mutex_);
  for (Usage* counted : {&projects_[project], &all_}) {
    counted->unsettled = std::max<int64_t>(0, counted->unsettled - 1);
    if (!created) counted->queued_jobs = std::max<int64_t>(0, counted->queued_jobs - 1);
  }
}

}  // namespace qpruner::server
