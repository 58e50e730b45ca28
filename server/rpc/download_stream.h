// One DownloadArtifact call.
#ifndef QPRUNER_SERVER_RPC_DOWNLOAD_STREAM_H_
#define QPRUNER_SERVER_RPC_DOWNLOAD_STREAM_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/rpc/callback_executor.h"
#include "server/rpc/peer_watchdog.h"
#include "server/rpc/stream_limit.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// At most this many bytes of a file in one message.
inline constexpr int64_t kArtifactChunkBytes = int64_t{1} << 20;

// Streams an artifact's bytes from request.offset() on, or where they lie (artifact_url.h); one
// chunk is in memory at a time. Before
// each it asks `admit`, whose error ends the stream: tokens expire. Calls `opened` once, unless the
// artifact cannot be read, before the first. A client that takes no chunk for as long as `peers`
// has patience gets UNAVAILABLE, and may go on by offset. `place` may be null. Deletes itself when
// gRPC is done with it; the arguments must live until then.
grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* StartDownloadStream(
    grpc::CallbackServerContext& context, const v1::DownloadArtifactRequest& request,
    JobStore& store, ArtifactStore& artifacts, CallbackExecutor& executor, PeerWatchdog& peers,
    std::function<absl::Status()> admit, std::function<void()> opened,
    std::unique_ptr<StreamLimit::Place> place);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_DOWNLOAD_STREAM_H_
