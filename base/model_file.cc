#include "base/model_file.h"

#include "absl/strings/match.h"
#include "base/resource_name.h"

namespace qpruner {

bool IsModelWeights(absl::string_view name) {
  return absl::StartsWith(name, "model") && absl::EndsWith(name, ".safetensors");
}

bool IsModelFile(absl::string_view name) {
  if (absl::StrContains(name, '/') || !IsArtifactPath(name) || name[0] == '.') return false;
  return IsModelWeights(name) || absl::EndsWith(name, ".json") || name == "tokenizer.model" ||
         name == "merges.txt";
}

}  // namespace qpruner
