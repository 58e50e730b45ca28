// TLS of the server's port.
#ifndef QPRUNER_SERVER_AUTH_SERVER_CREDENTIALS_H_
#define QPRUNER_SERVER_AUTH_SERVER_CREDENTIALS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"

namespace qpruner::server {

// Paths of PEM files, read again within seconds of a change: certificates are renewed in place.
struct TlsFiles {
  std::string certificate;  // The server's chain. Empty: no TLS.
  std::string key;
  // Clients and workers must present a certificate that one of these signed. Empty: none is asked
  // for.
  std::string client_ca;

  bool enabled() const { return !certificate.empty() || !key.empty() || !client_ca.empty(); }
};

// Plain text if TLS is not enabled. INVALID_ARGUMENT: a file is missing, is not PEM, or the key is
// not the certificate's; names the flag.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_AUTH_SERVER_CREDENTIALS_H_
