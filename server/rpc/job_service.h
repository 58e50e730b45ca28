// The public API on top of the queue and the stores: admit the caller, validate, call, map.
#ifndef QPRUNER_SERVER_RPC_JOB_SERVICE_H_
#define QPRUNER_SERVER_RPC_JOB_SERVICE_H_

#include <string>

#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/auth/access_control.h"
#include "server/queue/job_queue.h"
#include "server/queue/watch_hub.h"
#include "server/rpc/callback_executor.h"
#include "server/rpc/event_reads.h"
#include "server/rpc/peer_watchdog.h"
#include "server/rpc/stream_limit.h"
#include "server/store/job_store.h"
#include "server/validation/job_validation.h"

namespace qpruner::server {

// Unary calls block one of gRPC's threads while the store works; streams hold none. GetJob, which
// clients ask again and again, is answered by the thread that its bytes came in on, which more
// than halves its cost, unless the read has to wait.
using JobServiceBase =
    v1::JobService::WithCallbackMethod_WatchJob<v1::JobService::WithCallbackMethod_DownloadArtifact<
        v1::JobService::WithCallbackMethod_GetJob<v1::JobService::Service>>>;

// Thread-safe. All arguments must outlive it and the gRPC server it is registered with.
class JobServiceImpl final : public JobServiceBase {
 public:
  JobServiceImpl(JobValidationOptions validation, std::string version, JobQueue& queue,
                 JobStore& store, ArtifactStore& artifacts, WatchHub& watches, EventReads& events,
                 CallbackExecutor& downloads, CallbackExecutor& reads, AccessControl& access,
                 PeerWatchdog& peers)
      : validation_(std::move(validation)),
        version_(std::move(version)),
        access_(access),
        queue_(queue),
        store_(store),
        artifacts_(artifacts),
        watches_(watches),
        events_(events),
        downloads_(downloads),
        reads_(reads),
        peers_(peers) {}

  grpc::Status CreateJob(grpc::ServerContext* context, const v1::CreateJobRequest* request,
                         v1::CompressionJob* response) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context,
                                   const v1::GetJobRequest* request,
                                   v1::CompressionJob* response) override;
  grpc::Status ListJobs(grpc::ServerContext* context, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override;
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext* context,
                                                   const v1::WatchJobRequest* request) override;
  grpc::Status CancelJob(grpc::ServerContext* context, const v1::CancelJobRequest* request,
                         v1::CompressionJob* response) override;
  grpc::Status PauseJob(grpc::ServerContext* context, const v1::PauseJobRequest* request,
                        v1::CompressionJob* response) override;
  grpc::Status ResumeJob(grpc::ServerContext* context, const v1::ResumeJobRequest* request,
                         v1::CompressionJob* response) override;
  grpc::Status DeleteJob(grpc::ServerContext* context, const v1::DeleteJobRequest* request,
                         google::protobuf::Empty* response) override;
  grpc::Status ListTrials(grpc::ServerContext* context, const v1::ListTrialsRequest* request,
                          v1::ListTrialsResponse* response) override;
  grpc::Status GetParetoFront(grpc::ServerContext* context,
                              const v1::GetParetoFrontRequest* request,
                              v1::ParetoFront* response) override;
  grpc::Status ListArtifacts(grpc::ServerContext* context, const v1::ListArtifactsRequest* request,
                             v1::ListArtifactsResponse* response) override;
  grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* DownloadArtifact(
      grpc::CallbackServerContext* context, const v1::DownloadArtifactRequest* request) override;
  grpc::Status ListCapabilities(grpc::ServerContext* context,
                                const v1::ListCapabilitiesRequest* request,
                                v1::ListCapabilitiesResponse* response) override;

 private:
  // The caller, if it may see the job whose name `field` of the request holds.
  struct Admitted {
    Principal caller;
    JobName job;
  };
  absl::StatusOr<Admitted> Admit(const grpc::ServerContextBase& context, absl::string_view method,
                                 const std::string& field, const std::string& name);

  // CancelJob, PauseJob and ResumeJob.
  grpc::Status MoveJob(const grpc::ServerContextBase& context, absl::string_view method,
                       const std::string& name,
                       absl::StatusOr<v1::CompressionJob> (JobQueue::*move)(const JobName&),
                       v1::CompressionJob& response);

  // The same for streams, which themselves refuse a name that is none, together with other fields.
  // `job` is the one that `name`, a resource's, lies in.
  absl::StatusOr<Principal> AdmitStream(const grpc::ServerContextBase& context,
                                        absl::string_view method, const std::string& name,
                                        const absl::StatusOr<JobName>& job);

  const JobValidationOptions validation_;
  const std::string version_;
  AccessControl& access_;
  JobQueue& queue_;
  JobStore& store_;
  ArtifactStore& artifacts_;
  WatchHub& watches_;
  EventReads& events_;
  CallbackExecutor& downloads_;
  CallbackExecutor& reads_;
  PeerWatchdog& peers_;
  // Far more than are served at once, and no more than the descriptors of a process and, with S3,
  // some GiB of read-ahead.
  StreamLimit download_limit_{
      {.what = "downloads", .reason = "TOO_MANY_DOWNLOADS", .most = 256, .most_of_a_holder = 64}};
  // A watcher costs some 18 KiB, and one that does not read a batch of events and what the
  // connection holds.
  StreamLimit watch_limit_{
      {.what = "watches", .reason = "TOO_MANY_WATCHES", .most = 8192, .most_of_a_holder = 4096}};
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_JOB_SERVICE_H_
