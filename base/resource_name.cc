#include "base/resource_name.h"

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "base/utf8.h"

namespace qpruner {

bool IsResourceId(absl::string_view id) {
  return !id.empty() && id.size() <= 63 && absl::ascii_islower(id[0]) &&
         std::all_of(id.begin(), id.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
         });
}

bool IsArtifactPath(absl::string_view path) {
  if (path.empty() || path.size() > 512) return false;
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
    if (!std::all_of(part.begin(), part.end(), [](char c) {
          return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
        })) {
      return false;
    }
  }
  return true;
}

absl::StatusOr<JobName> JobName::Parse(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (parts.size() == 4 && parts[0] == "projects" && parts[2] == "jobs" && IsResourceId(parts[1]) &&
      IsResourceId(parts[3])) {
    return JobName{std::string(parts[1]), std::string(parts[3])};
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "Not a job name of the form projects/{project}/jobs/{job}: \"", CutUtf8(name, 200), "\""));
}

std::string JobName::ToString() const { return absl::StrCat("projects/", project, "/jobs/", job); }

std::string JobName::TrialName(int index) const {
  return absl::StrCat(ToString(), "/trials/", index);
}

std::string JobName::ArtifactName(absl::string_view path) const {
  return absl::StrCat(ToString(), "/artifacts/", path);
}

absl::StatusOr<ArtifactName> ArtifactName::Parse(absl::string_view name) {
  const size_t at = name.find("/artifacts/");
  if (at != absl::string_view::npos) {
    const absl::string_view path = name.substr(at + 11);
    absl::StatusOr<JobName> job = JobName::Parse(name.substr(0, at));
    if (job.ok() && IsArtifactPath(path)) return ArtifactName{*std::move(job), std::string(path)};
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "Not an artifact name of the form projects/{project}/jobs/{job}/artifacts/{path}: \"",
      CutUtf8(name, 200), "\""));
}

absl::StatusOr<std::string> ParseProjectName(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (parts.size() == 2 && parts[0] == "projects" && IsResourceId(parts[1])) {
    return std::string(parts[1]);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "Not a project name of the form projects/{project}: \"", CutUtf8(name, 200), "\""));
}

}  // namespace qpruner
