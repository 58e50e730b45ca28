// Files by content, kept on the worker so that tasks of one job share them.
#ifndef QPRUNER_WORKER_ARTIFACT_CACHE_H_
#define QPRUNER_WORKER_ARTIFACT_CACHE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "qpruner/internal/v1/task.pb.h"

namespace qpruner::worker {

// A folder of read-only files named by their SHA-256. Not thread-safe; one process owns the folder.
class ArtifactCache {
 public:
  // Gives the bytes from `offset` on to `sink`, in order; an error of the sink ends it.
  using Sink = std::function<absl::Status(absl::string_view data)>;
  using Source = std::function<absl::Status(int64_t offset, const Sink& sink)>;

  // Creates `folder` if it is not there. Trim keeps at most `max_bytes` of unused files.
  static absl::StatusOr<std::unique_ptr<ArtifactCache>> Open(const std::string& folder,
                                                             int64_t max_bytes);

  // Makes the file `target` with the content of `ref`: linked from the cache, after `source`
  // brought what is missing. A download that broke off goes on where it stopped, also in a later
  // call or process. Content that does not match is thrown away and fetched once more from its
  // beginning. DATA_LOSS: the second time it did not match either. Other codes: of `source` or the
  // system.
  absl::Status Provide(const internal::v1::ArtifactRef& ref, const std::string& target,
                       const Source& source);

  // Moves the file at `path`, whose content is known to be `ref`, into the cache. Best effort.
  void Adopt(const internal::v1::ArtifactRef& ref, const std::string& path);
  // The same, but the file stays at `path`, too; it must not be written any more.
  void Share(const internal::v1::ArtifactRef& ref, const std::string& path);

  // Removes the files that were not used for longest until at most `max_bytes` are left.
  void Trim();

 private:
  ArtifactCache(std::string folder, int64_t max_bytes)
      : folder_(std::move(folder)), max_bytes_(max_bytes) {}

  std::string PathOf(const std::string& sha256) const;
  absl::Status Fetch(const internal::v1::ArtifactRef& ref, const Source& source);

  const std::string folder_;
  const int64_t max_bytes_;
  // Modification time of the files that this process has hashed: they need not be hashed again
  // while it stays the same.
  std::map<std::string, int64_t> verified_;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_ARTIFACT_CACHE_H_
