// absl::Status on the wire: google.rpc.Status in gRPC's binary error details.
#ifndef QPRUNER_PROTO_GRPC_STATUS_H_
#define QPRUNER_PROTO_GRPC_STATUS_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace qpruner {

grpc::Status ToGrpcStatus(const absl::Status& status);
// Details are kept if the peer sent google.rpc.Status.
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace qpruner

#endif  // QPRUNER_PROTO_GRPC_STATUS_H_
