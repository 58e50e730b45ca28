#include "worker/direct_transfer.h"

#include <errno.h>
#include <unistd.h>

#include <map>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "spdlog/spdlog.h"
#include "worker/artifact_transfer.h"

namespace qpruner::worker {
namespace {

using internal::v1::ArtifactRef;
using internal::v1::Lease;
using internal::v1::PrepareUploadRequest;
using internal::v1::PrepareUploadResponse;
using internal::v1::WorkerService;

constexpr absl::Duration kCallDeadline = absl::Seconds(30);
// The server takes files that fit into one message itself.
constexpr int64_t kSentAtOnce = 1 << 20;

// Empty: the server has nothing of the file and no URL, or is too old to know, or something on the
// way cut the call. If it was a stop, what follows ends at once.
absl::StatusOr<PrepareUploadResponse> PrepareUpload(WorkerService::StubInterface& server,
                                                    const Lease& lease, const ArtifactRef& ref,
                                                    std::stop_token stop) {
  PrepareUploadRequest request;
  *request.mutable_lease() = lease;
  *request.mutable_ref() = ref;
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallDeadline));
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  PrepareUploadResponse response;
  const absl::Status status = FromGrpcStatus(server.PrepareUpload(&context, request, &response));
  if (status.ok() || absl::IsUnimplemented(status) || absl::IsCancelled(status)) return response;
  return status;
}

}  // namespace

absl::Status FetchDirectly(SignedUrlTransfer& urls, WorkerService::StubInterface& server,
                           const Lease& lease, const std::string& sha256, int64_t offset,
                           const ArtifactCache::Sink& sink, std::stop_token stop) {
  const auto counting_sink = [&](absl::string_view data) {
    offset += static_cast<int64_t>(data.size());
    return sink(data);
  };
  // Ends: a URL that brings next to nothing makes `urls` unusable.
  while (true) {
    v1::SignedUrl url;
    RETURN_IF_ERROR(FetchArtifact(server, lease, sha256, offset, counting_sink, stop,
                                  urls.usable() ? &url : nullptr));
    if (url.url().empty()) return absl::OkStatus();
    const absl::Status read = urls.Read(url.url(), offset, url.size_bytes(), counting_sink, stop);
    if (!absl::IsUnavailable(read)) return read;
    spdlog::warn("the storage did not give all of {}: {}; going on {}", sha256,
                 std::string(read.message()),
                 urls.usable() ? "with another URL" : "through the server");
  }
}

absl::Status UploadDirectly(SignedUrlTransfer& urls, WorkerService::StubInterface& server,
                            const Lease& lease, const ArtifactRef& ref, const std::string& path,
                            std::stop_token stop) {
  PrepareUploadResponse prepared;
  if (ref.size_bytes() > kSentAtOnce) {
    ASSIGN_OR_RETURN(prepared, PrepareUpload(server, lease, ref, stop));
  }
  if (prepared.has_url() && urls.usable()) {
    ASSIGN_OR_RETURN(const int fd, OpenOutput(ref, path));
    const auto closer = absl::MakeCleanup([fd] { close(fd); });
    std::map<std::string, std::string> headers;
    for (const auto& [name, value] : prepared.headers()) headers[name] = value;
    const absl::Status stored = urls.Write(
        prepared.url().url(), headers, ref.size_bytes(),
        [&](char* buffer, size_t size) -> absl::StatusOr<size_t> {
          while (true) {
            const ssize_t got = read(fd, buffer, size);
            if (got > 0) return static_cast<size_t>(got);
            if (got == 0) {
              return absl::InternalError(absl::StrCat("Output shrank: ", ref.path()));
            }
            if (errno != EINTR) {
              return absl::ErrnoToStatus(errno, absl::StrCat("Cannot read output ", ref.path()));
            }
          }
        },
        stop);
    if (!absl::IsUnavailable(stored)) return stored;
    spdlog::warn("the storage did not take {}: {}; going on through the server", ref.path(),
                 std::string(stored.message()));
  }
  return UploadArtifact(server, lease, ref, path, prepared.received_bytes(), stop);
}

}  // namespace qpruner::worker
