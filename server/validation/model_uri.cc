#include "server/validation/model_uri.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/hub_model.h"
#include "base/utf8.h"
#include "net/s3_client.h"

namespace qpruner::server {

absl::StatusOr<ArtifactName> ParseArtifactModel(absl::string_view uri) {
  absl::string_view rest = uri;
  if (absl::ConsumePrefix(&rest, "artifact://")) {
    absl::StatusOr<ArtifactName> name = ArtifactName::Parse(rest);
    if (name.ok()) return name;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "must be artifact://projects/{project}/jobs/{job}/artifacts/{path}, where path is "
      "a folder such as \"model\" or a .gguf file, is \"",
      CutUtf8(uri, 200), "\""));
}

bool IsFetchedModelUri(absl::string_view uri) {
  return absl::StartsWith(uri, "hf://") || absl::StartsWith(uri, "s3://") ||
         absl::StartsWith(uri, "artifact://");
}

std::string FetchedModelUriProblem(absl::string_view uri, const std::string& project) {
  if (absl::StartsWith(uri, "hf://")) {
    return std::string(HubModel::Parse(uri).status().message());
  }
  if (absl::StartsWith(uri, "s3://")) {
    return std::string(S3Location::Parse(uri).status().message());
  }
  const absl::StatusOr<ArtifactName> name = ParseArtifactModel(uri);
  if (!name.ok()) return std::string(name.status().message());
  // As if it were not there: who may see the other project can make the job there.
  if (name->job.project != project) {
    return absl::StrCat("must name an artifact of the job's own project, ", project);
  }
  return "";
}

}  // namespace qpruner::server
