// The server's TCP door: accepts connections, at most so many.
#ifndef QPRUNER_SERVER_RPC_CONNECTION_ACCEPTOR_H_
#define QPRUNER_SERVER_RPC_CONNECTION_ACCEPTOR_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace qpruner::server {

// Connections that a process with room for `descriptor_limit` open files may have: `wanted`, but
// what the store, artifacts and databases open stays free.
int ConnectionsWithin(int wanted, int descriptor_limit);

// gRPC's own listener knows no bound, and once the process has no descriptor left it never accepts
// again, whatever is closed later (grpc issue 16058): anybody who opens enough connections would
// end the service for good. So this listens itself and hands what it accepts to gRPC, at most
// `max_connections` at a time. Those beyond are closed at once; what is connected goes on.
class ConnectionAcceptor {
 public:
  // Listens on HOST:PORT, all addresses of HOST; port 0: any free one, the same for all of them.
  // Connections are made with `credentials`. Call before the server is built. UNAVAILABLE: an
  // address cannot be listened on; INVALID_ARGUMENT: there is no such host.
  static absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> Listen(
      const std::string& address, int max_connections,
      const std::shared_ptr<grpc::ServerCredentials>& credentials, grpc::ServerBuilder& builder);
  ~ConnectionAcceptor();
  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  // Once the server is built and started.
  void Start();
  // Accepts no more, and closes what waits to be accepted. Call before the server is shut down.
  void Stop();

  int port() const { return port_; }

 private:
  // A connection that gRPC has: its descriptor's number, which is another's once gRPC has closed
  // it, and its inode, by which that is known.
  struct Handed {
    int fd = -1;
    ino_t inode = 0;
  };

  ConnectionAcceptor(int max_connections,
                     std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> grpc);
  void Run();
  // False: there is nothing to accept, or no descriptor.
  bool AcceptOne(int listener);
  bool HasRoom();

  const int max_connections_;
  const std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> grpc_;
  std::vector<int> listeners_;
  int port_ = 0;
  int stop_event_ = -1;
  std::thread thread_;
  // Of the thread:
  std::vector<Handed> handed_;
  // By the machine's monotonic clock.
  absl::Duration next_look_ = absl::ZeroDuration();
  absl::Duration next_line_ = absl::ZeroDuration();
  int64_t refused_ = 0;  // Since the last line in the log.
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_CONNECTION_ACCEPTOR_H_
