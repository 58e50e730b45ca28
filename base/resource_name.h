// Names of the API's resources: projects/{project}/jobs/{job} and what is below a job.
#ifndef QPRUNER_BASE_RESOURCE_NAME_H_
#define QPRUNER_BASE_RESOURCE_NAME_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// projects/{project}/jobs/{job}. Both parts match [a-z][a-z0-9-]{0,62}.
struct JobName {
  std::string project;
  std::string job;

  // INVALID_ARGUMENT names the form that is expected.
  static absl::StatusOr<JobName> Parse(absl::string_view name);
  std::string ToString() const;
  std::string TrialName(int index) const;
  std::string ArtifactName(absl::string_view path) const;
};

// {job name}/artifacts/{path}.
struct ArtifactName {
  JobName job;
  std::string path;

  static absl::StatusOr<ArtifactName> Parse(absl::string_view name);
};

// projects/{project}: the project. INVALID_ARGUMENT names the form.
absl::StatusOr<std::string> ParseProjectName(absl::string_view name);

// True for [a-z][a-z0-9-]{0,62}.
bool IsResourceId(absl::string_view id);

// True for a relative path that stays in its folder: parts of [A-Za-z0-9._-], none of them "." or
// "..", at most 512 bytes.
bool IsArtifactPath(absl::string_view path);

}  // namespace qpruner

#endif  // QPRUNER_BASE_RESOURCE_NAME_H_
