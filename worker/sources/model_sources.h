// Models that the agent fetches for its engine, which has no need of a network: hf:// and s3://.
#ifndef QPRUNER_WORKER_SOURCES_MODEL_SOURCES_H_
#define QPRUNER_WORKER_SOURCES_MODEL_SOURCES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "net/s3_client.h"
#include "worker/artifact_cache.h"
#include "worker/sources/hub_client.h"

namespace qpruner::worker {

// Below a task's inputs, where the engine looks for models of other schemes than file and builtin.
inline constexpr char kSourceFolder[] = "source";

struct ModelSourceOptions {
  // Unset: hf:// is refused.
  std::optional<HubOptions> hub;
  // s3:// models must lie at or below one of these; none: s3:// is refused.
  std::vector<S3Location> s3_models;
  S3Options s3;
  int64_t max_model_bytes = int64_t{1} << 40;
};

// Not thread-safe.
class ModelSources {
 public:
  explicit ModelSources(ModelSourceOptions options);

  // What Fetch fetches, as prefixes of URIs: "hf://", "s3://bucket/prefix".
  std::vector<std::string> Prefixes() const;

  // True for hf:// and s3://.
  static bool Fetches(const std::string& uri);

  // Puts the files of the model into `folder`, which is there, and returns a URI of exactly this
  // content where there is one (hf:// with the commit), else `uri`. Files of a hub are checked
  // against its hashes and kept in `cache`; those of S3 are checked by size, and that they did not
  // change while they were read. A transfer that breaks off goes on where it stopped. `progress`
  // gets lines for people. Errors as HubClient's and S3Client's, and DATA_LOSS: the content is not
  // what the hub lists, a second time too.
  absl::StatusOr<std::string> Fetch(const std::string& uri, const std::string& folder,
                                    ArtifactCache& cache,
                                    const std::function<void(const std::string&)>& progress,
                                    std::stop_token stop);

 private:
  using Progress = std::function<void(const std::string&)>;
  absl::StatusOr<std::string> FetchFromHub(const std::string& uri, const std::string& folder,
                                           ArtifactCache& cache, const Progress& progress,
                                           std::stop_token stop);
  absl::Status FetchFromS3(const std::string& uri, const std::string& folder,
                           const Progress& progress, std::stop_token stop);

  const ModelSourceOptions options_;
  std::unique_ptr<HubClient> hub_;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_SOURCES_MODEL_SOURCES_H_
