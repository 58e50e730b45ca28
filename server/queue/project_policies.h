// What each project may have of the cluster: its weight and its quotas.
#ifndef QPRUNER_SERVER_QUEUE_PROJECT_POLICIES_H_
#define QPRUNER_SERVER_QUEUE_PROJECT_POLICIES_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::server {

// internal.v1.ProjectQuota says what each is. 0: no bound.
struct ProjectPolicy {
  double weight = 1;
  int64_t max_queued_jobs = 0;
  int max_running_tasks = 0;
  int64_t max_artifact_bytes = 0;
};

struct ProjectPolicies {
  // Of projects that are not named.
  ProjectPolicy fallback;
  std::map<std::string, ProjectPolicy> projects;
  // Over all projects.
  int64_t max_queued_jobs = 100'000;

  const ProjectPolicy& Of(const std::string& project) const {
    const auto found = projects.find(project);
    return found == projects.end() ? fallback : found->second;
  }
};

// Of JSON of an internal.v1.QuotaFile. INVALID_ARGUMENT names the field, the rule and the value.
absl::StatusOr<ProjectPolicies> ParseQuotaFile(absl::string_view json);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_PROJECT_POLICIES_H_
