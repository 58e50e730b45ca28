// Moves artifacts between this worker's disk and the storage behind the server where that is
// possible, else through the server. As the functions of artifact_transfer.h.
#ifndef QPRUNER_WORKER_DIRECT_TRANSFER_H_
#define QPRUNER_WORKER_DIRECT_TRANSFER_H_

#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "net/signed_url_transfer.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "worker/artifact_cache.h"

namespace qpruner::worker {

// From a URL, if the server gives one and `urls` says that they are usable. What a URL leaves out
// comes from another one or through the server.
absl::Status FetchDirectly(SignedUrlTransfer& urls,
                           internal::v1::WorkerService::StubInterface& server,
                           const internal::v1::Lease& lease, const std::string& sha256,
                           int64_t offset, const ArtifactCache::Sink& sink, std::stop_token stop);

// To a URL in the same way, or on from where an upload of the same lease was cut off. `urls` is not
// the one of fetches: a storage may allow one and not the other.
absl::Status UploadDirectly(SignedUrlTransfer& urls,
                            internal::v1::WorkerService::StubInterface& server,
                            const internal::v1::Lease& lease, const internal::v1::ArtifactRef& ref,
                            const std::string& path, std::stop_token stop);

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_DIRECT_TRANSFER_H_
