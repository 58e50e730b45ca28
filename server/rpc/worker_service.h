// The workers' side of the server.
#ifndef QPRUNER_SERVER_RPC_WORKER_SERVICE_H_
#define QPRUNER_SERVER_RPC_WORKER_SERVICE_H_

#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/auth/access_control.h"
#include "server/queue/job_queue.h"

namespace qpruner::server {

// The long poll holds no thread; the other calls are short or move bytes for one worker.
using WorkerServiceBase = internal::v1::WorkerService::WithCallbackMethod_AcquireTask<
    internal::v1::WorkerService::Service>;

// Thread-safe. The arguments must outlive it and the gRPC server it is registered with.
class WorkerServiceImpl final : public WorkerServiceBase {
 public:
  WorkerServiceImpl(JobQueue& queue, ArtifactStore& artifacts, AccessControl& access)
      : queue_(queue), artifacts_(artifacts), access_(access) {}

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

 private:
  // The task of a current lease, if the caller may act as the worker that holds it. ABORTED: stale.
  absl::StatusOr<internal::v1::TaskRecord> AdmitLease(const Principal& caller,
                                                      const internal::v1::Lease& lease);
  absl::Status Receive(const Principal& caller,
                       grpc::ServerReader<internal::v1::UploadArtifactRequest>& reader);
  absl::Status Send(const Principal& caller, const internal::v1::FetchArtifactRequest& request,
                    grpc::ServerWriter<internal::v1::FetchArtifactResponse>& writer);

  JobQueue& queue_;
  ArtifactStore& artifacts_;
  AccessControl& access_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_WORKER_SERVICE_H_
