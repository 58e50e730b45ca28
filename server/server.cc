#include "server/server.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <limits>
#include <stop_token>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "proto/channel_security.h"
#include "proto/keepalive.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/auth/access_control.h"
#include "server/local_workers.h"
#include "server/metrics/server_metrics.h"
#include "server/queue/quota_file.h"
#include "server/queue/trial_proposer.h"
#include "server/queue/watch_hub.h"
#include "server/retention/retention_sweep.h"
#include "server/retention/retention_thread.h"
#include "server/rpc/callback_executor.h"
#include "server/rpc/connection_acceptor.h"
#include "server/rpc/event_reads.h"
#include "server/rpc/interrupted_uploads.h"
#include "server/rpc/job_service.h"
#include "server/rpc/peer_watchdog.h"
#include "server/rpc/worker_service.h"
#include "server/store/postgres_job_store.h"
#include "server/store/sqlite_job_store.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// Requests hold specs, results hold a search space: chunks of artifacts are the largest, at 1 MiB.
// A result of 4096 groups with names and scores stays below 4 MiB.
constexpr int kMaxRequestBytes = 16 << 20;
constexpr int kMaxReplyBytes = 16 << 20;
// Of the reads for watchers. Those of a database wait for the network.
constexpr int kEventReadThreads = 2;
constexpr int kEventReadThreadsOfDatabase = 8;
// Of GetJob, where it has to wait: as many as the store has connections by default.
constexpr int kReadThreads = 4;
constexpr int kReadThreadsOfDatabase = 16;
// Threads of unary calls that stay for the next call. gRPC's own bound of 2 has it start and end a
// thread for most calls, which costs more than the call.
constexpr int kIdleCallThreads = 64;
// Each waits for a disk or for an S3 storage, one chunk of one download at a time. Apart from the
// watchers' threads: a storage that hangs must not hold up events.
constexpr int kDownloadThreads = 8;
// Of unary calls and uploads, each of which takes one while it waits for a disk; gRPC's own bound
// is none.
constexpr int kMaxCallThreads = 2048;
// Of gRPC's buffers for all connections: who calls is known only once its whole request is here,
// and requests may be begun by anyone. Beyond it gRPC reads in smaller pieces and ends calls. 192
// transfers of a MiB are a third of it.
constexpr size_t kMaxCallMemoryBytes = size_t{512} << 20;
// A connection without a call for so long is closed: the next call opens another.
constexpr absl::Duration kMaxConnectionIdle = absl::Minutes(5);
// A peer that takes nothing, or sends nothing of what it announced, for so long has lost its
// stream: far longer than a connection that works pauses, and a few such at a time are all there
// are.
constexpr absl::Duration kPeerPatience = absl::Seconds(60);
constexpr absl::Duration kPeerLookInterval = absl::Seconds(2);
// For a call that begins while the last thread looks whether there are any.
constexpr absl::Duration kIdleShutdownGrace = absl::Milliseconds(300);
// All headers of a call; ours are a token and what gRPC adds.
constexpr int kMaxHeaderBytes = 8 << 10;
// Thousands of watchers may share a proxy's connection; an honest client has a handful of calls.
constexpr int kMaxCallsAConnection = 4096;

// Files that this process may have open.
int DescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  return static_cast<int>(std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<int>::max()));
}

}  // namespace

namespace {

bool IsHostAndPort(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  int port = -1;
  return colon != std::string::npos && colon != 0 &&
         absl::SimpleAtoi(listen.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

}  // namespace

absl::Status CheckListenAddress(const std::string& listen, bool secured, bool insecure) {
  if (listen.empty() || absl::StartsWith(listen, "unix:")) return absl::OkStatus();
  if (!IsHostAndPort(listen)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen must be HOST:PORT with a port from 0 to 65535, or unix:PATH, is \"",
                     listen, "\""));
  }
  if (IsLocalAddress(listen) || secured || insecure) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--listen ", listen,
                   " is not a loopback address, and without both TLS and tokens whoever reaches "
                   "the port can read models and run jobs. Give --tls-cert, --tls-key and "
                   "--token-file, listen on 127.0.0.1 or a unix: socket, or pass --insecure if the "
                   "network is private"));
}

absl::Status CheckMetricsAddress(const std::string& listen, bool insecure) {
  if (listen == "off") return absl::OkStatus();
  if (!IsHostAndPort(listen)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--metrics-listen must be HOST:PORT with a port from 0 to 65535, or off, is \"", listen,
        "\""));
  }
  if (IsLocalAddress(listen) || insecure) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--metrics-listen ", listen,
                   " is not a loopback address, and /metrics answers whoever reaches the port, "
                   "without TLS or a token. Listen on 127.0.0.1, or pass --insecure-metrics if "
                   "only who may see metrics reaches it"));
}

absl::Status CheckQueueTimes(const JobQueueOptions& queue) {
  if (queue.heartbeat_interval < absl::Milliseconds(10) ||
      queue.lease_duration < 3 * queue.heartbeat_interval ||
      queue.lease_duration > absl::Hours(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--heartbeat-interval must be at least 10ms, and --lease-duration from three "
                     "times that, so "
                     "that one lost heartbeat costs no task, to 1h; they are ",
                     absl::FormatDuration(queue.heartbeat_interval), " and ",
                     absl::FormatDuration(queue.lease_duration)));
  }
  if (queue.retry_backoff < absl::ZeroDuration() || queue.retry_backoff > queue.max_retry_backoff) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--retry-backoff must be from 0 to ", absl::FormatDuration(queue.max_retry_backoff),
        ", is ", absl::FormatDuration(queue.retry_backoff)));
  }
  return absl::OkStatus();
}

// In the order of construction; destroyed in reverse.
struct Server::Parts {
  ServerOptions options;
  std::string address;
  std::unique_ptr<JobStore> store;
  // Ends the calls of an S3 storage.
  std::stop_source stop_storage;
  std::unique_ptr<ArtifactStore> artifacts;
  std::unique_ptr<TrialProposer> proposer;
  // Null: no file.
  std::unique_ptr<QuotaFile> quotas;
  WatchHub watches;
  ServerMetrics metrics;
  std::unique_ptr<JobQueue> queue;
  std::unique_ptr<RetentionSweep> sweep;
  std::unique_ptr<EventReads> events;
  std::unique_ptr<CallbackExecutor> downloads;
  std::unique_ptr<CallbackExecutor> reads;
  std::unique_ptr<AccessControl> access;
  std::unique_ptr<PeerWatchdog> peers;
  std::unique_ptr<InterruptedUploads> interrupted_uploads;
  std::unique_ptr<JobServiceImpl> job_service;
  std::unique_ptr<WorkerServiceImpl> worker_service;
  std::unique_ptr<grpc::Server> grpc_server;
  // Null: a Unix socket is listened on, or nothing.
  std::unique_ptr<ConnectionAcceptor> connections;
  std::unique_ptr<MetricsEndpoint> metrics_endpoint;
  std::unique_ptr<LocalWorkers> local_workers;
  std::unique_ptr<RetentionThread> retention;

  std::atomic<bool> stop_queue = false;
  std::thread leases;
  std::thread planner;
  absl::Mutex shutdown_mutex;
  bool is_shut_down ABSL_GUARDED_BY(shutdown_mutex) = false;
};

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Server::~Server() { Shutdown(); }
const std::string& Server::address() const { return parts_->address; }
int Server::metrics_port() const {
  return parts_->metrics_endpoint ? parts_->metrics_endpoint->port() : 0;
}
std::shared_ptr<grpc::Channel> Server::InProcessChannel() {
  return parts_->grpc_server->InProcessChannel(grpc::ChannelArguments());
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options, Clock& clock,
                                                      IdGenerator& ids) {
  RETURN_IF_ERROR(CheckListenAddress(
      options.listen, options.tls.enabled() && !options.token_file.empty(), options.insecure));
  RETURN_IF_ERROR(
      CheckMetricsAddress(options.metrics_listen, options.insecure || options.insecure_metrics));
  if (options.data_dir.empty()) return absl::InvalidArgumentError("--data-dir is required");
  RETURN_IF_ERROR(CheckQueueTimes(options.queue));
  if (options.local_workers < 0 || options.local_workers > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("--local-workers must be from 0 to 64, is ", options.local_workers));
  }
  if (options.local_workers > 0 && !std::filesystem::exists(options.worker_program)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--local-workers needs the worker's program, which is not there: ",
                     options.worker_program));
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                   MakeServerCredentials(options.tls));
  auto parts = std::make_unique<Parts>();
  Parts& p = *parts;
  p.options = std::move(options);
  if (p.options.token_file.empty()) {
    p.access = AccessControl::Open(clock);
  } else {
    ASSIGN_OR_RETURN(p.access, AccessControl::FromFile(p.options.token_file, clock));
  }
  if (p.options.artifacts_s3 && !p.options.artifacts_dir.empty()) {
    return absl::InvalidArgumentError("--artifacts-url and --artifacts-dir exclude each other");
  }
  if (p.options.postgres && p.options.artifacts_dir.empty() && !p.options.artifacts_s3) {
    return absl::InvalidArgumentError(
        "--store=postgres needs --artifacts-dir or --artifacts-url: where the artifacts of all "
        "servers on this database are");
  }
  if (p.options.artifacts_dir.empty()) p.options.artifacts_dir = p.options.data_dir + "/artifacts";
  if (p.options.postgres) {
    ASSIGN_OR_RETURN(p.store, OpenPostgresJobStore(*p.options.postgres));
  } else {
    ASSIGN_OR_RETURN(p.store, OpenSqliteJobStore({.folder = p.options.data_dir + "/store"}));
  }
  if (p.options.artifacts_s3) {
    ASSIGN_OR_RETURN(p.options.artifacts_s3->owner, p.store->Identity());
    p.options.artifacts_s3->s3.stop = p.stop_storage.get_token();
    ASSIGN_OR_RETURN(p.artifacts, OpenS3ArtifactStore(*p.options.artifacts_s3));
  } else {
    ASSIGN_OR_RETURN(p.artifacts, OpenLocalArtifactStore({.folder = p.options.artifacts_dir,
                                                          .shared = p.store->shared(),
                                                          .clock = clock}));
  }
  if (!p.options.quota_file.empty()) {
    ASSIGN_OR_RETURN(p.quotas, QuotaFile::Open(p.options.quota_file, clock));
    p.options.queue.projects = p.quotas->policies();
  }
  p.proposer = MakeSearchProposer();
  ASSIGN_OR_RETURN(p.queue, JobQueue::Create(p.options.queue, *p.store, *p.artifacts, clock, ids,
                                             *p.proposer, p.watches, p.metrics));
  p.sweep = std::make_unique<RetentionSweep>(p.options.retention, *p.store, *p.artifacts, *p.queue,
                                             p.metrics, clock);
  p.events = std::make_unique<EventReads>(
      ReadStoredEvents(*p.store, p.watches),
      p.store->shared() ? kEventReadThreadsOfDatabase : kEventReadThreads);
  p.downloads = std::make_unique<CallbackExecutor>(kDownloadThreads);
  p.reads =
      std::make_unique<CallbackExecutor>(p.store->shared() ? kReadThreadsOfDatabase : kReadThreads);
  p.peers = std::make_unique<PeerWatchdog>(clock, kPeerPatience, kPeerLookInterval);
  p.interrupted_uploads =
      std::make_unique<InterruptedUploads>(clock, InterruptedUploads::Options{});
  p.job_service = std::make_unique<JobServiceImpl>(
      p.options.validation, p.options.version, *p.queue, *p.store, *p.artifacts, p.watches,
      *p.events, *p.downloads, *p.reads, *p.access, *p.peers);
  p.worker_service = std::make_unique<WorkerServiceImpl>(*p.queue, *p.artifacts, *p.access,
                                                         *p.peers, *p.interrupted_uploads);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  if (!p.options.listen.empty()) {
    if (absl::StartsWith(p.options.listen, "unix:")) {
      builder.AddListeningPort(p.options.listen, credentials, &port);
    } else {
      ASSIGN_OR_RETURN(
          p.connections,
          ConnectionAcceptor::Listen(
              p.options.listen, ConnectionsWithin(p.options.max_connections, DescriptorLimit()),
              credentials, builder));
      port = p.connections->port();
    }
  }
  // Local workers come in by a door of their own, whatever name the server's certificate has.
  const std::string side_door = absl::StrCat("unix:", p.options.data_dir, "/workers.sock");
  const bool use_side_door = p.options.local_workers > 0 && p.options.tls.enabled();
  if (use_side_door) builder.AddListeningPort(side_door, grpc::InsecureServerCredentials());
  builder.RegisterService(p.job_service.get());
  builder.RegisterService(p.worker_service.get());
  using SyncOption = grpc::ServerBuilder::SyncServerOption;
  builder.SetSyncServerOption(SyncOption::NUM_CQS, 1);
  builder.SetSyncServerOption(SyncOption::MAX_POLLERS, kIdleCallThreads);
  grpc::ResourceQuota quota("calls");
  quota.SetMaxThreads(kMaxCallThreads);
  quota.Resize(kMaxCallMemoryBytes);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  builder.SetMaxSendMessageSize(kMaxReplyBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsAConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS,
                             static_cast<int>(absl::ToInt64Milliseconds(kMaxConnectionIdle)));
  SetKeepalive(builder);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(p.metrics.CallCounter());
  builder.experimental().SetInterceptorCreators(std::move(interceptors));

  p.grpc_server = builder.BuildAndStart();
  if (p.grpc_server == nullptr || (!p.options.listen.empty() && port == 0)) {
    return absl::UnavailableError(
        absl::StrCat("Cannot listen on ", p.options.listen, ": is it in use?"));
  }
  if (p.connections) p.connections->Start();
  p.address = p.options.listen;
  if (!p.address.empty() && !absl::StartsWith(p.address, "unix:")) {
    p.address = absl::StrCat(p.address.substr(0, p.address.rfind(':')), ":", port);
  }
  // From here on ~Server cleans up.
  std::unique_ptr<Server> server(new Server(std::move(parts)));
  p.leases = std::thread([&p] {
    while (!p.stop_queue) {
      if (p.quotas && p.quotas->ReadIfChanged()) p.queue->SetPolicies(p.quotas->policies());
      p.queue->KeepLeases();
      p.queue->WaitForWork();
    }
  });
  p.planner = std::thread([&p] {
    while (!p.stop_queue) {
      if (!p.queue->PlanNext()) p.queue->WaitToPlan();
    }
  });
  p.retention = std::make_unique<RetentionThread>(*p.sweep, p.options.retention.sweep_interval);
  if (p.options.metrics_listen != "off") {
    ASSIGN_OR_RETURN(p.metrics_endpoint,
                     MetricsEndpoint::Start(p.options.metrics_listen, p.metrics,
                                            MakeStoreGauges(*p.store, *p.queue, p.watches)));
  }
  if (p.options.local_workers > 0) {
    const int cores = std::max(1u, std::thread::hardware_concurrency());
    const std::string workers_dir = p.options.data_dir + "/workers";
    std::vector<std::string> token_files;
    for (int i = 1; i <= p.options.local_workers; ++i) {
      const std::string name = LocalWorkers::NameOf(i);
      const std::string token = p.access->MintWorkerToken(name, ids);
      if (token.empty()) break;
      token_files.push_back(absl::StrCat(workers_dir, "/", name, ".token"));
      RETURN_IF_ERROR(CreateFolders(workers_dir));
      RETURN_IF_ERROR(WriteFileDurably(token_files.back(), token, 0600));
    }
    std::vector<std::string> arguments;
    for (const std::string& root : p.options.validation.model_roots) {
      arguments.push_back("--model-root=" + root);
    }
    if (arguments.empty()) arguments.push_back("--model-root=none");
    arguments.insert(arguments.end(), p.options.worker_arguments.begin(),
                     p.options.worker_arguments.end());
    p.local_workers = std::make_unique<LocalWorkers>(
        LocalWorkers::Options{.count = p.options.local_workers,
                              .program = p.options.worker_program,
                              .server_address = use_side_door ? side_door : p.address,
                              .data_dir = workers_dir,
                              .token_files = std::move(token_files),
                              .arguments = std::move(arguments),
                              .threads = std::max(1, cores / p.options.local_workers)});
  }
  return server;
}

// Gives calls so long. gRPC then cancels them, but waits for their handlers: those that a storage
// does not answer are cut off from it, and so is who asks it later.
void Server::EndCalls(Parts& p, absl::Duration grace) {
  absl::Notification ended;
  std::thread cut_off([&] {
    ended.WaitForNotificationWithTimeout(grace);
    p.stop_storage.request_stop();
  });
  p.grpc_server->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  p.grpc_server->Wait();
  ended.Notify();
  cut_off.join();
}

void Server::Shutdown() {
  Parts& p = *parts_;
  absl::MutexLock lock(&p.shutdown_mutex);
  if (p.is_shut_down) return;
  p.is_shut_down = true;
  if (auto* health = p.grpc_server->GetHealthCheckService()) health->SetServingStatus(false);
  p.queue->StopLeasing();
  if (p.connections) p.connections->Stop();
  // While their calls are still answered.
  if (p.local_workers) p.local_workers->Stop();
  p.watches.Close();
  // So that each stream ends with its own status rather than with the connection.
  p.watches.AwaitNoWatchers(p.options.shutdown_grace / 2);
  // gRPC waits not only for calls but for each connection's client to take note of the end, which a
  // client without a call does only at its next look, seconds later.
  EndCalls(p, p.metrics.open_calls() > 0 ? p.options.shutdown_grace : kIdleShutdownGrace);
  p.retention.reset();
  p.stop_queue = true;
  p.queue->Wake();
  if (p.leases.joinable()) p.leases.join();
  if (p.planner.joinable()) p.planner.join();
  p.metrics_endpoint.reset();
  // Every change was synced before it was acknowledged; closing the store is only tidy.
}

}  // namespace qpruner::server
