// The server process as an object: stores, queue, services, in the order they start and stop.
#ifndef QPRUNER_SERVER_SERVER_H_
#define QPRUNER_SERVER_SERVER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "grpcpp/channel.h"
#include "server/artifacts/s3_artifact_store.h"
#include "server/auth/server_credentials.h"
#include "server/queue/job_queue.h"
#include "server/retention/retention_policy.h"
#include "server/store/postgres_options.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

struct ServerOptions {
  // HOST:PORT (port 0: chosen by the system) or unix:PATH. Empty: in-process channels only.
  std::string listen = "127.0.0.1:7421";
  TlsFiles tls;
  // JSON file of the tokens that callers need (see AccessControl). Empty: nobody needs one.
  std::string token_file;
  // Without TLS and tokens, everybody who reaches the port is a client and a worker: other
  // addresses than loopback and unix sockets need both of them, or this.
  bool insecure = false;
  // Of TCP at a time; fewer where the process may not open so many files. Those beyond are closed.
  int max_connections = 10'000;
  // Holds the SQLite store, the artifacts and the local workers' scratch. One server at a time.
  std::string data_dir;
  // Jobs in a PostgreSQL database, which several servers may share, instead of SQLite.
  std::optional<PostgresOptions> postgres;
  // Empty: in data_dir. Servers that share a database share this folder too, so it must be given.
  std::string artifacts_dir;
  // Artifacts in an S3 storage instead, which servers that share a database share too.
  std::optional<S3ArtifactStoreOptions> artifacts_s3;
  // HOST:PORT of /metrics, or "off". It has neither TLS nor tokens: other addresses than loopback
  // need `insecure`, or this.
  std::string metrics_listen = "127.0.0.1:9464";
  bool insecure_metrics = false;
  // Workers that this server runs itself.
  int local_workers = 0;
  // Their program.
  std::string worker_program;
  // Further arguments of it, besides the roots of models below.
  std::vector<std::string> worker_arguments;
  JobValidationOptions validation;
  JobQueueOptions queue;
  RetentionPolicy retention;
  // Calls in flight get so long at shutdown.
  absl::Duration shutdown_grace = absl::Seconds(5);
  // JSON of internal.v1.QuotaFile: weights and quotas of projects, read again when it changes.
  // Empty: none, but that the queue is bounded.
  std::string quota_file;
  // `major.minor.patch`.
  std::string version;
};

// Thread-safe.
class Server {
 public:
  // Listens when it returns. INVALID_ARGUMENT: an option is bad. FAILED_PRECONDITION: another
  // process uses the data folder, or the database or S3 storage refuses. UNAVAILABLE: an address
  // cannot be listened on, or the database or S3 storage cannot be reached.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options, Clock& clock,
                                                       IdGenerator& ids);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Where it listens, as a client dials it: "127.0.0.1:7421" or "unix:/run/qpruner".
  const std::string& address() const;
  // Of /metrics; 0 if off.
  int metrics_port() const;
  // To this server, without a socket.
  std::shared_ptr<grpc::Channel> InProcessChannel();

  // Ordered: health says NOT_SERVING, no further leases, local workers hand their tasks back,
  // watches end, calls get `shutdown_grace`, calls of an S3 storage are given up, the queue stops.
  // What was acknowledged is on disk all the time. Blocks, whatever a storage does, for about the
  // local workers' grace and one and a half times this one. Twice is fine.
  void Shutdown();

 private:
  struct Parts;
  explicit Server(std::unique_ptr<Parts> parts);
  static void EndCalls(Parts& p, absl::Duration grace);
  std::unique_ptr<Parts> parts_;
};

// OK if `listen` is a unix socket or a loopback address, or `secured` (TLS and tokens), or
// `insecure`.
absl::Status CheckListenAddress(const std::string& listen, bool secured, bool insecure);

// OK if `listen` is "off" or a loopback address, or `insecure`.
absl::Status CheckMetricsAddress(const std::string& listen, bool insecure);

// OK if a lease outlives a few heartbeats, and no time is absurd.
absl::Status CheckQueueTimes(const JobQueueOptions& queue);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_SERVER_H_
