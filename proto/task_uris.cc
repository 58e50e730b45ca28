#include "proto/task_uris.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace qpruner {

bool ReadsOriginalModel(const internal::v1::TaskSpec& task) {
  return task.has_prepare() || (task.has_finalize() && task.spec().fine_tune().has_distillation());
}

std::vector<std::string> UrisReadByWorker(const internal::v1::TaskSpec& task) {
  const v1::CompressionSpec& spec = task.spec();
  std::vector<std::string> uris;
  const auto add_file = [&uris](const std::string& uri) {
    if (absl::StartsWith(uri, "file://")) uris.push_back(uri);
  };
  add_file(spec.model().uri());
  add_file(spec.calibration().dataset().uri());
  add_file(spec.fine_tune().dataset().uri());
  add_file(spec.evaluation().dataset().uri());
  for (const auto& choice_task : spec.evaluation().tasks()) add_file(choice_task.uri());
  const std::string& model = spec.model().uri();
  if (ReadsOriginalModel(task) &&
      (absl::StartsWith(model, "hf://") || absl::StartsWith(model, "s3://"))) {
    uris.push_back(model);
  }
  return uris;
}

bool IsBelowAnyUri(absl::string_view uri, absl::Span<const std::string> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [uri](absl::string_view prefix) {
    absl::string_view rest = uri;
    return absl::ConsumePrefix(&rest, prefix) &&
           (rest.empty() || absl::EndsWith(prefix, "/") || absl::StartsWith(rest, "/"));
  });
}

}  // namespace qpruner
