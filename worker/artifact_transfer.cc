#include "worker/artifact_transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "google/protobuf/empty.pb.h"
#include "proto/grpc_status.h"

namespace qpruner::worker {

using internal::v1::ArtifactRef;
using internal::v1::FetchArtifactRequest;
using internal::v1::FetchArtifactResponse;
using internal::v1::Lease;
using internal::v1::UploadArtifactRequest;
using internal::v1::WorkerService;

namespace {

// The most that the protocol allows in one message.
constexpr int64_t kChunkBytes = 1 << 20;
// A transfer slower than this is as good as broken; fetches go on where they stopped.
constexpr double kSlowestBytesPerSecond = 256 << 10;
constexpr absl::Duration kTransferSetUp = absl::Seconds(60);

std::chrono::system_clock::time_point Deadline(int64_t size_bytes) {
  return absl::ToChronoTime(
      absl::Now() + kTransferSetUp +
      absl::Seconds(static_cast<double>(size_bytes) / kSlowestBytesPerSecond));
}

// A call without bounds on size, such as a fetch, is bounded by this.
constexpr int64_t kUnknownSize = int64_t{64} << 30;

// CANCELLED is what a stop gives. A server or a proxy that ends the call may say so, too: then the
// transfer was cut, like any other.
absl::Status CutUnlessStopped(const absl::Status& status, const std::stop_token& stop) {
  if (!absl::IsCancelled(status) || stop.stop_requested()) return status;
  return absl::UnavailableError(absl::StrCat("The transfer was cut: ", status.message()));
}

}  // namespace

absl::Status FetchArtifact(WorkerService::StubInterface& server, const Lease& lease,
                           const std::string& sha256, int64_t offset,
                           const ArtifactCache::Sink& sink, std::stop_token stop,
                           v1::SignedUrl* url) {
  FetchArtifactRequest request;
  *request.mutable_lease() = lease;
  request.set_sha256(sha256);
  request.set_offset(offset);
  request.set_accept_url(url != nullptr);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(Deadline(kUnknownSize));
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  const auto stream = server.FetchArtifact(&context, request);
  FetchArtifactResponse response;
  absl::Status sunk;
  while (sunk.ok() && stream->Read(&response)) {
    if (response.has_url() && url != nullptr) {
      *url = std::move(*response.mutable_url());
    } else {
      sunk = sink(response.data());
    }
  }
  if (!sunk.ok()) context.TryCancel();
  const absl::Status status = FromGrpcStatus(stream->Finish());
  return sunk.ok() ? CutUnlessStopped(status, stop) : sunk;
}

absl::StatusOr<int> OpenOutput(const ArtifactRef& ref, const std::string& path) {
  // The engine, which may have been taken over, has made it: no link is followed and no pipe waited
  // for.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open output ", ref.path()));
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size != ref.size_bytes()) {
    close(fd);
    return absl::InternalError(
        absl::StrCat("Output ", ref.path(), " is not a file of ", ref.size_bytes(), " bytes"));
  }
  return fd;
}

absl::Status UploadArtifact(WorkerService::StubInterface& server, const Lease& lease,
                            const ArtifactRef& ref, const std::string& path, int64_t offset,
                            std::stop_token stop) {
  ASSIGN_OR_RETURN(const int fd, OpenOutput(ref, path));
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  if (lseek(fd, offset, SEEK_SET) != offset) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot read output ", ref.path()));
  }

  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(Deadline(ref.size_bytes()));
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  google::protobuf::Empty response;
  const auto stream = server.UploadArtifact(&context, &response);
  UploadArtifactRequest request;
  *request.mutable_lease() = lease;
  *request.mutable_ref() = ref;
  request.set_offset(offset);
  std::string chunk;
  bool first = true;
  while (true) {
    chunk.resize(kChunkBytes);
    const ssize_t got = read(fd, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const int error = errno;
      context.TryCancel();
      stream->Finish().ok();
      return absl::ErrnoToStatus(error, absl::StrCat("Cannot read output ", ref.path()));
    }
    if (got == 0 && !first) break;
    chunk.resize(static_cast<size_t>(got));
    request.set_data(chunk);
    // A refused write: the server has ended the call; Finish tells why.
    if (!stream->Write(request)) break;
    request.Clear();
    first = false;
    if (got == 0) break;
  }
  stream->WritesDone();
  return CutUnlessStopped(FromGrpcStatus(stream->Finish()), stop);
}

}  // namespace qpruner::worker
