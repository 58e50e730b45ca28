// A server stream that ends with an error before it begins.
#ifndef QPRUNER_SERVER_RPC_REFUSED_STREAM_H_
#define QPRUNER_SERVER_RPC_REFUSED_STREAM_H_

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "proto/grpc_status.h"

namespace qpruner::server {

template <typename Response>
class RefusedStream final : public grpc::ServerWriteReactor<Response> {
 public:
  // Deletes itself when gRPC is done with it.
  static grpc::ServerWriteReactor<Response>* Start(const absl::Status& why) {
    auto* stream = new RefusedStream;
    stream->Finish(ToGrpcStatus(why));
    return stream;
  }
  void OnDone() override { delete this; }
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_REFUSED_STREAM_H_
