// How clients and workers secure their connection to a server.
#ifndef QPRUNER_PROTO_CHANNEL_SECURITY_H_
#define QPRUNER_PROTO_CHANNEL_SECURITY_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace qpruner {

// Files are read again within seconds of a change, for the next connection or call: certificates
// are renewed and tokens rotated in place.
struct ChannelSecurity {
  // PEM certificates that the server's must be signed by. Empty: no TLS.
  std::string ca;
  // PEM certificate and key to present to a server that asks for them. Both or none.
  std::string certificate;
  std::string key;
  // A file that holds a bearer token. Empty: no token.
  std::string token_file;
  // Allows a token to travel unencrypted over a network.
  bool insecure = false;
};

// A channel to `address` ("host:port" or "unix:/path") that notices a server that is gone (see
// keepalive.h). INVALID_ARGUMENT: a file cannot be used, or
// a token would travel in the clear; names the flag (--tls-ca, --tls-cert, --tls-key,
// --token-file).
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenSecureChannel(const std::string& address,
                                                                 const ChannelSecurity& security,
                                                                 grpc::ChannelArguments arguments);

// The errors of OpenSecureChannel, without a channel: gRPC starts threads with its first one, which
// a process may have to do something before.
absl::Status CheckChannelSecurity(const std::string& address, const ChannelSecurity& security);

// True if nobody but this machine's processes can listen in: a unix socket or a loopback address.
bool IsLocalAddress(const std::string& address);

}  // namespace qpruner

#endif  // QPRUNER_PROTO_CHANNEL_SECURITY_H_
