#include "proto/task_uris.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace qpruner {

std::vector<NamedUri> UrisOf(const v1::CompressionSpec& spec) {
  std::vector<NamedUri> uris = {
      {"model.uri", spec.model().uri()},
      {"calibration.dataset.uri", spec.calibration().dataset().uri()},
      {"fine_tune.dataset.uri", spec.fine_tune().dataset().uri()},
      {"evaluation.dataset.uri", spec.evaluation().dataset().uri()},
  };
  for (int i = 0; i < spec.evaluation().tasks_size(); ++i) {
    uris.push_back(
        {absl::StrCat("evaluation.tasks[", i, "].uri"), spec.evaluation().tasks(i).uri()});
  }
  return uris;
}

bool ReadsOriginalModel(const internal::v1::TaskSpec& task) {
  return task.has_prepare() || (task.has_finalize() && task.spec().fine_tune().has_distillation());
}

std::vector<std::string> UrisReadByWorker(const internal::v1::TaskSpec& task) {
  std::vector<std::string> uris;
  for (NamedUri& named : UrisOf(task.spec())) {
    if (absl::StartsWith(named.uri, "file://")) uris.push_back(std::move(named.uri));
  }
  const std::string& model = task.spec().model().uri();
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
