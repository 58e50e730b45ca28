// One WatchJob call.
#ifndef QPRUNER_SERVER_RPC_WATCH_STREAM_H_
#define QPRUNER_SERVER_RPC_WATCH_STREAM_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/queue/watch_hub.h"
#include "server/rpc/event_reads.h"
#include "server/rpc/peer_watchdog.h"
#include "server/rpc/stream_limit.h"

namespace qpruner::server {

// Streams the events of request.name() after request.after_sequence(), each once and in order,
// until the event of a final state was sent, the client goes, or the hub closes (UNAVAILABLE). It
// holds at most one batch of events, which watchers at the same place share. Before each it asks
// `admit`, whose error ends the stream: tokens expire. A watcher that takes no event for as long as
// `peers` has patience is dropped with UNAVAILABLE and "WATCHER_TOO_SLOW: ..." (not in an
// ErrorInfo, see EndingOf): it may watch again after the last event that it got. Holds `place` (may
// be null) until it ends. Deletes itself when gRPC is done with it; the arguments must live until
// then.
grpc::ServerWriteReactor<v1::JobEvent>* StartWatchStream(grpc::CallbackServerContext& context,
                                                         const v1::WatchJobRequest& request,
                                                         EventReads& reads, WatchHub& hub,
                                                         PeerWatchdog& peers,
                                                         std::function<absl::Status()> admit,
                                                         std::unique_ptr<StreamLimit::Place> place);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_WATCH_STREAM_H_
