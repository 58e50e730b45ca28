// One WatchJob call.
#ifndef QPRUNER_SERVER_RPC_WATCH_STREAM_H_
#define QPRUNER_SERVER_RPC_WATCH_STREAM_H_

#include <functional>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/queue/watch_hub.h"
#include "server/rpc/event_reads.h"

namespace qpruner::server {

// Streams the events of request.name() after request.after_sequence(), each once and in order,
// until the event of a final state was sent, the client goes, or the hub closes (UNAVAILABLE). It
// holds at most one batch of events, which watchers at the same place share. Before each it asks
// `admit`, whose error ends the stream: tokens expire. Deletes itself when gRPC is done with it;
// the arguments must live until then.
grpc::ServerWriteReactor<v1::JobEvent>* StartWatchStream(const v1::WatchJobRequest& request,
                                                         EventReads& reads, WatchHub& hub,
                                                         std::function<absl::Status()> admit);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_WATCH_STREAM_H_
