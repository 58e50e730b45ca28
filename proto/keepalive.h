// Pings that find out whether the other end of a connection is still there: one set of times for
// server, workers and clients, because a server ends connections that ping more often than it
// allows.
#ifndef QPRUNER_PROTO_KEEPALIVE_H_
#define QPRUNER_PROTO_KEEPALIVE_H_

#include "absl/time/time.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"

namespace qpruner {

struct Keepalive {
  // A connection with open calls that has been silent for so long is pinged. With the time-out
  // below, a peer that went without a word (a machine that lost its power, a firewall that forgot
  // the connection) is noticed after 30 s: by a worker's long poll and a watch, which else wait for
  // it for ever. A ping is 17 bytes.
  absl::Duration time = absl::Seconds(20);
  // A peer that has not answered for so long is gone: longer than a busy or paused process takes.
  absl::Duration timeout = absl::Seconds(10);
  // Peers may ping so often. Half of `time`, so that no delay on the way makes an honest peer look
  // like one that floods.
  absl::Duration min_peer_interval = absl::Seconds(10);
};

// For a channel. It pings while calls are open only: who calls nothing needs no server.
void SetKeepalive(grpc::ChannelArguments& arguments, const Keepalive& keepalive = {});
// For a server: it pings the peers of idle connections too, so that dead ones go.
void SetKeepalive(grpc::ServerBuilder& builder, const Keepalive& keepalive = {});

}  // namespace qpruner

#endif  // QPRUNER_PROTO_KEEPALIVE_H_
