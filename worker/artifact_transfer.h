// Moves artifacts between the server and this worker's disk, under a lease.
#ifndef QPRUNER_WORKER_ARTIFACT_TRANSFER_H_
#define QPRUNER_WORKER_ARTIFACT_TRANSFER_H_

#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "worker/artifact_cache.h"

namespace qpruner::worker {

// One attempt each: the caller retries UNAVAILABLE, and RESOURCE_EXHAUSTED that carries RetryInfo
// (the server has enough transfers open). A stop cancels the call; nothing else gives CANCELLED.

// Streams the artifact's bytes from `offset` on to `sink`. With a `url` the server may give that
// instead, and no bytes (direct_transfer.h follows it).
// UNAVAILABLE: the transfer was cut. ABORTED: the lease is stale. Codes of the sink are kept.
absl::Status FetchArtifact(internal::v1::WorkerService::StubInterface& server,
                           const internal::v1::Lease& lease, const std::string& sha256,
                           int64_t offset, const ArtifactCache::Sink& sink, std::stop_token stop,
                           v1::SignedUrl* url = nullptr);

// Opens the file at `path`, which the engine made, for reading; the caller closes it. INTERNAL: it
// is not a plain file of ref's size.
absl::StatusOr<int> OpenOutput(const internal::v1::ArtifactRef& ref, const std::string& path);

// Stores the file at `path` as `ref`. The server has its first `offset` bytes (PrepareUpload); if
// it has lost them, UNAVAILABLE. DATA_LOSS: the file is not what `ref` says. ABORTED: the lease is
// stale, perhaps only by the upload's end.
absl::Status UploadArtifact(internal::v1::WorkerService::StubInterface& server,
                            const internal::v1::Lease& lease, const internal::v1::ArtifactRef& ref,
                            const std::string& path, int64_t offset, std::stop_token stop);

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_ARTIFACT_TRANSFER_H_
