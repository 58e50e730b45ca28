// The workers' side of the server.
#ifndef QPRUNER_SERVER_RPC_WORKER_SERVICE_H_
#define QPRUNER_SERVER_RPC_WORKER_SERVICE_H_

#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/auth/access_control.h"
#include "server/queue/job_queue.h"
#include "server/rpc/interrupted_uploads.h"
#include "server/rpc/peer_watchdog.h"
#include "server/rpc/stream_limit.h"

namespace qpruner::server {

// The long poll holds no thread; the other calls are short, or move bytes for one worker: these are
// bounded in number and in how long they wait for the worker.
using WorkerServiceBase = internal::v1::WorkerService::WithCallbackMethod_AcquireTask<
    internal::v1::WorkerService::Service>;

// Thread-safe. The arguments must outlive it and the gRPC server it is registered with.
class WorkerServiceImpl final : public WorkerServiceBase {
 public:
  WorkerServiceImpl(JobQueue& queue, ArtifactStore& artifacts, AccessControl& access,
                    PeerWatchdog& peers, InterruptedUploads& interrupted)
      : queue_(queue),
        artifacts_(artifacts),
        access_(access),
        peers_(peers),
        interrupted_(interrupted) {}

  grpc::Status RegisterWorker(grpc::ServerContext* context,
                              const internal::v1::RegisterWorkerRequest* request,
                              internal::v1::RegisterWorkerResponse* response) override;
  grpc::ServerUnaryReactor* AcquireTask(grpc::CallbackServerContext* context,
                                        const internal::v1::AcquireTaskRequest* request,
                                        internal::v1::AcquireTaskResponse* response) override;
  grpc::Status Heartbeat(grpc::ServerContext* context,
                         const internal::v1::HeartbeatRequest* request,
                         internal::v1::HeartbeatResponse* response) override;
  grpc::Status CompleteTask(grpc::ServerContext* context,
                            const internal::v1::CompleteTaskRequest* request,
                            google::protobuf::Empty* response) override;
  grpc::Status SaveCheckpoint(grpc::ServerContext* context,
                              const internal::v1::SaveCheckpointRequest* request,
                              google::protobuf::Empty* response) override;
  grpc::Status UploadArtifact(grpc::ServerContext* context,
                              grpc::ServerReader<internal::v1::UploadArtifactRequest>* reader,
                              google::protobuf::Empty* response) override;
  grpc::Status PrepareUpload(grpc::ServerContext* context,
                             const internal::v1::PrepareUploadRequest* request,
                             internal::v1::PrepareUploadResponse* response) override;
  grpc::Status FetchArtifact(
      grpc::ServerContext* context, const internal::v1::FetchArtifactRequest* request,
      grpc::ServerWriter<internal::v1::FetchArtifactResponse>* writer) override;

  // Uploads and fetches whose lease was admitted, and which have not ended.
  int transfer_count() { return worker_streams_.count(); }

 private:
  // Whether the caller may act as `worker`. A refusal is in the audit log, as below.
  absl::Status AdmitName(const grpc::ServerContextBase& context, absl::string_view method,
                         const Principal& caller, const std::string& worker);
  // The task of a current lease, if the caller may act as the worker that holds it. ABORTED: stale.
  absl::StatusOr<internal::v1::TaskRecord> AdmitLease(const grpc::ServerContextBase& context,
                                                      absl::string_view method,
                                                      const Principal& caller,
                                                      const internal::v1::Lease& lease);
  absl::Status Receive(grpc::ServerContext& context,
                       grpc::ServerReader<internal::v1::UploadArtifactRequest>& reader);
  absl::Status Send(grpc::ServerContext& context, const internal::v1::FetchArtifactRequest& request,
                    grpc::ServerWriter<internal::v1::FetchArtifactResponse>& writer);
  // What an upload that starts at `offset` goes on with.
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> OpenWriter(const std::string& upload,
                                                             const internal::v1::ArtifactRef& ref,
                                                             int64_t offset);
  // False: the worker has ended the stream, or it is cut off, for keeping still too.
  bool Read(grpc::ServerContext& context,
            grpc::ServerReader<internal::v1::UploadArtifactRequest>& reader,
            internal::v1::UploadArtifactRequest& message);

  JobQueue& queue_;
  ArtifactStore& artifacts_;
  AccessControl& access_;
  PeerWatchdog& peers_;
  InterruptedUploads& interrupted_;
  // Uploads and fetches. Each holds one of the threads of all calls and, with S3, a part of a file.
  // A worker has one at a time, and those that a broken connection has left. Before its first
  // message an upload counts for its bearer only, who may be a whole fleet.
  StreamLimit bearer_streams_{
      {.what = "transfers", .reason = "TOO_MANY_TRANSFERS", .most = 192, .most_of_a_holder = 128}};
  StreamLimit worker_streams_{
      {.what = "transfers", .reason = "TOO_MANY_TRANSFERS", .most = 192, .most_of_a_holder = 8}};
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_WORKER_SERVICE_H_
