#include "server/queue/project_policies.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "qpruner/internal/v1/quota_file.pb.h"

namespace qpruner::server {
namespace {

using internal::v1::ProjectQuota;
using internal::v1::QuotaFile;

constexpr double kLeastWeight = 0.001;
constexpr double kMostWeight = 1000;
constexpr int64_t kMostQueuedJobs = 10'000'000;

absl::Status CheckCount(const std::string& field, bool is_set, int64_t value, int64_t most) {
  if (!is_set || (value >= 1 && value <= most)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " must be from 1 to ", most, ", is ", value));
}

// `quota` over `policy`, whose values stay where it has none.
absl::StatusOr<ProjectPolicy> Apply(const std::string& at, const ProjectQuota& quota,
                                    ProjectPolicy policy) {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  if (quota.has_weight()) {
    if (!(quota.weight() >= kLeastWeight && quota.weight() <= kMostWeight)) {
      return absl::InvalidArgumentError(absl::StrCat(at, ".weight must be from ", kLeastWeight,
                                                     " to ", kMostWeight, ", is ", quota.weight()));
    }
    policy.weight = quota.weight();
  }
  RETURN_IF_ERROR(CheckCount(at + ".maxQueuedJobs", quota.has_max_queued_jobs(),
                             quota.max_queued_jobs(), kMostQueuedJobs));
  RETURN_IF_ERROR(CheckCount(at + ".maxRunningTasks", quota.has_max_running_tasks(),
                             quota.max_running_tasks(), std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckCount(at + ".maxArtifactBytes", quota.has_max_artifact_bytes(),
                             quota.max_artifact_bytes(), kAny));
  if (quota.has_max_queued_jobs()) policy.max_queued_jobs = quota.max_queued_jobs();
  if (quota.has_max_running_tasks()) policy.max_running_tasks = quota.max_running_tasks();
  if (quota.has_max_artifact_bytes()) policy.max_artifact_bytes = quota.max_artifact_bytes();
  return policy;
}

}  // namespace

absl::StatusOr<ProjectPolicies> ParseQuotaFile(absl::string_view json) {
  QuotaFile file;
  const google::protobuf::util::Status parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &file);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON of a quota file: ", std::string(parsed.message())));
  }
  ProjectPolicies policies;
  RETURN_IF_ERROR(CheckCount("maxQueuedJobs", file.has_max_queued_jobs(), file.max_queued_jobs(),
                             kMostQueuedJobs));
  if (file.has_max_queued_jobs()) policies.max_queued_jobs = file.max_queued_jobs();
  ASSIGN_OR_RETURN(policies.fallback, Apply("defaults", file.defaults(), {}));
  for (const auto& [project, quota] : file.projects()) {
    if (!IsResourceId(project)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "projects: keys are project ids, [a-z][a-z0-9-]{0,62}, one is \"", project, "\""));
    }
    ASSIGN_OR_RETURN(policies.projects[project],
                     Apply(absl::StrCat("projects.", project), quota, policies.fallback));
  }
  return policies;
}

}  // namespace qpruner::server
