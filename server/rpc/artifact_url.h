// Whether a caller reads an artifact from the storage itself, or stores it there.
#ifndef QPRUNER_SERVER_RPC_ARTIFACT_URL_H_
#define QPRUNER_SERVER_RPC_ARTIFACT_URL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "qpruner/internal/v1/worker_service.pb.h"
#include "qpruner/v1/signed_url.pb.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

// For a caller that may read the artifact and accepts a URL: the URL, if the store makes them and
// more than one message of bytes is left from `offset` on. What is smaller is sent at once: that
// takes no further request, and works without a way to the storage.
std::optional<v1::SignedUrl> UrlInsteadOfBytes(ArtifactStore& artifacts, const std::string& sha256,
                                               int64_t size_bytes, int64_t offset);

// The same for a worker that may store the file.
internal::v1::PrepareUploadResponse UrlForUpload(ArtifactStore& artifacts,
                                                 const internal::v1::ArtifactRef& ref);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_ARTIFACT_URL_H_
