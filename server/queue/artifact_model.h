// Models that an earlier job of the project has made: artifact://.
#ifndef QPRUNER_SERVER_QUEUE_ARTIFACT_MODEL_H_
#define QPRUNER_SERVER_QUEUE_ARTIFACT_MODEL_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "qpruner/internal/v1/task.pb.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Where the files lie among a task's inputs, and in the list of the job that reads them.
inline constexpr absl::string_view kSourcePrefix = "source/";

bool IsArtifactModel(const std::string& uri);

// The files of the model, at their paths below kSourcePrefix. `uri` has passed validation.
// INVALID_ARGUMENT, about job.spec.model.uri: no such job or artifact, or they make no model.
absl::StatusOr<std::vector<internal::v1::ArtifactRef>> FindArtifactModel(StoreReader& store,
                                                                         const std::string& uri);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_ARTIFACT_MODEL_H_
