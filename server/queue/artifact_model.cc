#include "server/queue/artifact_model.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/model_file.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/validation/model_uri.h"

namespace qpruner::server {

bool IsArtifactModel(const std::string& uri) { return absl::StartsWith(uri, "artifact://"); }

absl::StatusOr<std::vector<internal::v1::ArtifactRef>> FindArtifactModel(StoreReader& store,
                                                                         const std::string& uri) {
  const auto refuse = [](const std::string& why) {
    return BadRequestError({{"job.spec.model.uri", why}});
  };
  ASSIGN_OR_RETURN(const ArtifactName place, ParseArtifactModel(uri));
  const absl::StatusOr<std::vector<v1::Artifact>> artifacts = store.ListArtifacts(place.job);
  if (absl::IsNotFound(artifacts.status())) {
    return refuse(absl::StrCat("names a job that is not there: ", place.job.ToString()));
  }
  RETURN_IF_ERROR(artifacts.status());
  const bool is_file = absl::EndsWithIgnoreCase(place.path, ".gguf");
  bool has_config = false;
  bool has_weights = false;
  std::vector<internal::v1::ArtifactRef> files;
  for (const v1::Artifact& artifact : *artifacts) {
    ASSIGN_OR_RETURN(const ArtifactName name, ArtifactName::Parse(artifact.name()));
    absl::string_view file = name.path;
    if (is_file) {
      if (file != place.path) continue;
      file = "model.gguf";
    } else if (!absl::ConsumePrefix(&file, place.path + "/") || !IsModelFile(file)) {
      continue;
    }
    has_config |= file == "config.json";
    has_weights |= IsModelWeights(file);
    internal::v1::ArtifactRef& ref = files.emplace_back();
    ref.set_path(absl::StrCat(kSourcePrefix, file));
    ref.set_sha256(artifact.sha256());
    ref.set_size_bytes(artifact.size_bytes());
  }
  if (is_file && files.empty()) {
    return refuse(absl::StrCat(place.job.ToString(), " has no artifact ", place.path));
  }
  if (!is_file && !(has_config && has_weights)) {
    return refuse(absl::StrCat(place.job.ToString(), " has no model below ", place.path,
                               "/: it needs config.json and model*.safetensors"));
  }
  return files;
}

}  // namespace qpruner::server
