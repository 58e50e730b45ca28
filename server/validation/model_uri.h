// model.uri of the schemes that are not read from a worker's disk: hf, s3 and artifact.
#ifndef QPRUNER_SERVER_VALIDATION_MODEL_URI_H_
#define QPRUNER_SERVER_VALIDATION_MODEL_URI_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/resource_name.h"

namespace qpruner::server {

// A model among the artifacts of a job: artifact://projects/P/jobs/J/artifacts/PATH, a folder such
// as "model", or a file whose name ends in .gguf. INVALID_ARGUMENT: the form that is expected.
absl::StatusOr<ArtifactName> ParseArtifactModel(absl::string_view uri);

// True for hf://, s3:// and artifact://.
bool IsFetchedModelUri(absl::string_view uri);

// What is wrong with the shape of such a URI in a job of `project`; empty: nothing.
std::string FetchedModelUriProblem(absl::string_view uri, const std::string& project);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_VALIDATION_MODEL_URI_H_
