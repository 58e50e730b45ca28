#include "server/rpc/artifact_url.h"

#include <utility>

#include "server/queue/job_change.h"
#include "server/rpc/download_stream.h"

namespace qpruner::server {

std::optional<v1::SignedUrl> UrlInsteadOfBytes(ArtifactStore& artifacts, const std::string& sha256,
                                               int64_t size_bytes, int64_t offset) {
  if (size_bytes - offset <= kArtifactChunkBytes) return std::nullopt;
  std::optional<ArtifactUrl> made = artifacts.MakeUrl(sha256);
  if (!made) return std::nullopt;
  v1::SignedUrl url;
  url.set_url(std::move(made->url));
  *url.mutable_expire_time() = ToTimestamp(made->expire_time);
  url.set_size_bytes(size_bytes);
  return url;
}

internal::v1::PrepareUploadResponse UrlForUpload(ArtifactStore& artifacts,
                                                 const internal::v1::ArtifactRef& ref) {
  internal::v1::PrepareUploadResponse response;
  if (ref.size_bytes() <= kArtifactChunkBytes) return response;
  std::optional<ArtifactUploadUrl> made = artifacts.MakeUploadUrl(ref.sha256(), ref.size_bytes());
  if (!made) return response;
  response.mutable_url()->set_url(std::move(made->url));
  *response.mutable_url()->mutable_expire_time() = ToTimestamp(made->expire_time);
  response.mutable_url()->set_size_bytes(ref.size_bytes());
  response.mutable_headers()->insert(made->headers.begin(), made->headers.end());
  return response;
}

}  // namespace qpruner::server
