#include "server/rpc/worker_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "server/rpc/artifact_url.h"
#include "server/rpc/download_stream.h"

namespace qpruner::server {
namespace {

void SetDuration(google::protobuf::Duration& to, absl::Duration from) {
  to.set_seconds(absl::ToInt64Seconds(from));
  to.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(from - absl::Seconds(to.seconds()))));
}

// A poll that waits in the queue. The queue and gRPC share it: whoever lets go last deletes it.
class AcquireReactor final : public grpc::ServerUnaryReactor {
 public:
  static grpc::ServerUnaryReactor* Start(JobQueue& queue,
                                         const internal::v1::AcquireTaskRequest& request,
                                         internal::v1::AcquireTaskResponse* response) {
    auto* poll = new AcquireReactor(queue, response);
    poll->self_.reset(poll);
    const std::shared_ptr<AcquireReactor> shared = poll->self_;
    const int64_t id = queue.AcquireTask(
        request, [shared](absl::StatusOr<internal::v1::AcquireTaskResponse> result) {
          shared->Answer(std::move(result));
        });
    shared->SetWaiter(id);
    return poll;
  }

  void OnCancel() override {
    std::optional<int64_t> id;
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      id = waiter_id_;
    }
    if (id) queue_.CancelAcquire(*id);
  }
  void OnDone() override {
    // May delete this.
    const std::shared_ptr<AcquireReactor> last = std::move(self_);
  }

 private:
  AcquireReactor(JobQueue& queue, internal::v1::AcquireTaskResponse* response)
      : queue_(queue), response_(response) {}

  void SetWaiter(int64_t id) {
    bool cancelled = false;
    {
      absl::MutexLock lock(&mutex_);
      waiter_id_ = id;
      cancelled = cancelled_;
    }
    if (cancelled) queue_.CancelAcquire(id);
  }

  // The queue calls it once. A task that comes too late for a cancelled call is not lost: the
  // worker's next poll gets the same lease.
  void Answer(absl::StatusOr<internal::v1::AcquireTaskResponse> result) {
    if (result.ok()) *response_ = std::move(result.value());
    Finish(ToGrpcStatus(result.status()));
  }

  JobQueue& queue_;
  internal::v1::AcquireTaskResponse* const response_;
  std::shared_ptr<AcquireReactor> self_;
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<int64_t> waiter_id_ ABSL_GUARDED_BY(mutex_);
};

// The token is the lease's alone, and nobody else's guess.
std::string NameOfUpload(const internal::v1::Lease& lease, const internal::v1::ArtifactRef& ref) {
  return absl::StrCat(lease.token(), "/", ref.sha256(), "/", ref.size_bytes());
}

// INVALID_ARGUMENT names the fields.
absl::Status CheckUploadedRef(const internal::v1::ArtifactRef& ref) {
  std::vector<FieldViolation> violations;
  if (!IsArtifactPath(ref.path())) {
    violations.push_back({"ref.path", absl::StrCat("must be a relative path without \"..\", is \"",
                                                   CutUtf8(ref.path(), 200), "\"")});
  }
  if (!IsSha256Hex(ref.sha256())) {
    violations.push_back({"ref.sha256", "must be 64 lower-case hexadecimal digits"});
  }
  if (ref.size_bytes() < 0 || ref.size_bytes() > kMaxArtifactBytes) {
    violations.push_back({"ref.size_bytes", absl::StrCat("must be from 0 to ", kMaxArtifactBytes,
                                                         ", is ", ref.size_bytes())});
  }
  return violations.empty() ? absl::OkStatus() : BadRequestError(violations);
}

}  // namespace

absl::Status WorkerServiceImpl::AdmitName(const grpc::ServerContextBase& context,
                                          absl::string_view method, const Principal& caller,
                                          const std::string& worker) {
  const absl::Status status = CheckWorkerAccess(caller, worker);
  return status.ok() ? status : access_.AuditRefusal(context, caller, method, worker, status);
}

absl::StatusOr<internal::v1::TaskRecord> WorkerServiceImpl::AdmitLease(
    const grpc::ServerContextBase& context, absl::string_view method, const Principal& caller,
    const internal::v1::Lease& lease) {
  ASSIGN_OR_RETURN(internal::v1::TaskRecord task, queue_.FindLeasedTask(lease));
  if (absl::Status status = CheckWorkerAccess(caller, task.worker()); !status.ok()) {
    return access_.AuditRefusal(context, caller, method,
                                absl::StrCat(task.job(), "/tasks/", task.task_id()), status);
  }
  return task;
}

grpc::Status WorkerServiceImpl::RegisterWorker(grpc::ServerContext* context,
                                               const internal::v1::RegisterWorkerRequest* request,
                                               internal::v1::RegisterWorkerResponse* response) {
  const absl::StatusOr<Principal> caller = access_.AdmitWorker(*context, "RegisterWorker");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  absl::Status status = AdmitName(*context, "RegisterWorker", *caller, request->worker());
  if (!status.ok()) return ToGrpcStatus(status);
  status = queue_.RegisterWorker(*request);
  access_.Audit(*context, *caller, "RegisterWorker", request->worker(), status);
  if (!status.ok()) return ToGrpcStatus(status);
  SetDuration(*response->mutable_lease_duration(), queue_.options().lease_duration);
  SetDuration(*response->mutable_heartbeat_interval(), queue_.options().heartbeat_interval);
  return grpc::Status::OK;
}

grpc::ServerUnaryReactor* WorkerServiceImpl::AcquireTask(
    grpc::CallbackServerContext* context, const internal::v1::AcquireTaskRequest* request,
    internal::v1::AcquireTaskResponse* response) {
  const absl::StatusOr<Principal> caller = access_.AdmitWorker(*context, "AcquireTask");
  absl::Status status = caller.status();
  if (status.ok()) status = AdmitName(*context, "AcquireTask", *caller, request->worker());
  if (!status.ok()) {
    grpc::ServerUnaryReactor* refused = context->DefaultReactor();
    refused->Finish(ToGrpcStatus(status));
    return refused;
  }
  return AcquireReactor::Start(queue_, *request, response);
}

grpc::Status WorkerServiceImpl::Heartbeat(grpc::ServerContext* context,
                                          const internal::v1::HeartbeatRequest* request,
                                          internal::v1::HeartbeatResponse* response) {
  const absl::StatusOr<Principal> caller = access_.AdmitWorker(*context, "Heartbeat");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  // Whose lease it is costs a read, which is spared where anyone may act as any worker.
  if (caller->role != Role::kAnyone) {
    const auto task = AdmitLease(*context, "Heartbeat", *caller, request->lease());
    if (!task.ok()) return ToGrpcStatus(task.status());
  }
  absl::StatusOr<internal::v1::HeartbeatResponse> result = queue_.Heartbeat(*request);
  if (!result.ok()) return ToGrpcStatus(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

grpc::Status WorkerServiceImpl::CompleteTask(grpc::ServerContext* context,
                                             const internal::v1::CompleteTaskRequest* request,
                                             google::protobuf::Empty*) {
  const absl::StatusOr<Principal> caller = access_.AdmitWorker(*context, "CompleteTask");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  // ABORTED: a lease that is not current any more is the queue's to judge; a repeated completion is
  // fine. Whoever's lease cannot be looked up completes nothing.
  if (caller->role != Role::kAnyone) {
    const auto task = AdmitLease(*context, "CompleteTask", *caller, request->lease());
    if (!task.ok() && !absl::IsAborted(task.status())) return ToGrpcStatus(task.status());
  }
  return ToGrpcStatus(queue_.CompleteTask(*request));
}

grpc::Status WorkerServiceImpl::SaveCheckpoint(grpc::ServerContext* context,
                                               const internal::v1::SaveCheckpointRequest* request,
                                               google::protobuf::Empty*) {
  const absl::StatusOr<Principal> caller = access_.AdmitWorker(*context, "SaveCheckpoint");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  const auto task = AdmitLease(*context, "SaveCheckpoint", *caller, request->lease());
  if (!task.ok()) return ToGrpcStatus(task.status());
  return ToGrpcStatus(queue_.SaveCheckpoint(*request));
}

bool WorkerServiceImpl::Read(grpc::ServerContext& context,
                             grpc::ServerReader<internal::v1::UploadArtifactRequest>& reader,
                             internal::v1::UploadArtifactRequest& message) {
  const PeerWatchdog::Wait wait(
      peers_, EndingOf(context, absl::StrCat("Nothing was sent for ",
                                             absl::FormatDuration(peers_.patience()))));
  return reader.Read(&message);
}

grpc::Status WorkerServiceImpl::UploadArtifact(
    grpc::ServerContext* context, grpc::ServerReader<internal::v1::UploadArtifactRequest>* reader,
    google::protobuf::Empty*) {
  return ToGrpcStatus(Receive(*context, *reader));
}

absl::Status WorkerServiceImpl::Receive(
    grpc::ServerContext& context, grpc::ServerReader<internal::v1::UploadArtifactRequest>& reader) {
  ASSIGN_OR_RETURN(const Principal caller, access_.AdmitWorker(context, "UploadArtifact"));
  ASSIGN_OR_RETURN(const auto place_of_bearer, bearer_streams_.Take("tokens/" + caller.id));
  internal::v1::UploadArtifactRequest message;
  if (!Read(context, reader, message)) {
    if (context.IsCancelled()) return absl::CancelledError("The worker went away");
    return BadRequestError({{"lease", "the first message must carry lease and ref"}});
  }
  const internal::v1::Lease lease = message.lease();
  ASSIGN_OR_RETURN(const internal::v1::TaskRecord task,
                   AdmitLease(context, "UploadArtifact", caller, lease));
  ASSIGN_OR_RETURN(const auto place_of_worker, worker_streams_.Take("workers/" + task.worker()));
  const internal::v1::ArtifactRef ref = message.ref();
  RETURN_IF_ERROR(CheckUploadedRef(ref));

  const std::string upload = NameOfUpload(lease, ref);
  InterruptedUploads::Running running(
      interrupted_, upload, EndingOf(context, "The worker asked how to go on with this upload"));
  int64_t received = message.offset();
  ASSIGN_OR_RETURN(std::unique_ptr<ArtifactWriter> writer, OpenWriter(upload, ref, received));
  absl::Status still;
  do {
    RETURN_IF_ERROR(writer->Append(message.data()));
    received += static_cast<int64_t>(message.data().size());
    // Tokens expire.
    still = access_.AdmitWorker(context, "UploadArtifact").status();
  } while (still.ok() && Read(context, reader, message));
  // A stream that was cut off has not come to its end, though all bytes may be there.
  if (context.IsCancelled() || absl::IsDeadlineExceeded(still)) {
    running.Keep(std::move(writer), received);
    return absl::CancelledError("The worker went away");
  }
  RETURN_IF_ERROR(still);
  // What a task has lost in the meantime it does not store any more.
  RETURN_IF_ERROR(AdmitLease(context, "UploadArtifact", caller, lease).status());
  return writer->Commit();
}

absl::StatusOr<std::unique_ptr<ArtifactWriter>> WorkerServiceImpl::OpenWriter(
    const std::string& upload, const internal::v1::ArtifactRef& ref, int64_t offset) {
  if (offset < 0 || offset > ref.size_bytes()) {
    return BadRequestError({{"offset", absl::StrCat("must be from 0 to ", ref.size_bytes(),
                                                    ", the file's size, is ", offset)}});
  }
  if (offset == 0) return artifacts_.Create(ref.sha256(), ref.size_bytes());
  if (std::unique_ptr<ArtifactWriter> kept = interrupted_.Take(upload, offset)) return kept;
  return WithErrorInfo(absl::UnavailableError(absl::StrCat("The first ", offset, " bytes of ",
                                                           ref.path(), " are not here (now)")),
                       "UPLOAD_NOT_KEPT");
}

grpc::Status WorkerServiceImpl::PrepareUpload(grpc::ServerContext* context,
                                              const internal::v1::PrepareUploadRequest* request,
                                              internal::v1::PrepareUploadResponse* response) {
  const absl::StatusOr<Principal> caller = access_.AdmitWorker(*context, "PrepareUpload");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  absl::Status status = AdmitLease(*context, "PrepareUpload", *caller, request->lease()).status();
  if (status.ok()) status = CheckUploadedRef(request->ref());
  if (!status.ok()) return ToGrpcStatus(status);
  const int64_t received =
      interrupted_.ReceivedBytes(NameOfUpload(request->lease(), request->ref()));
  if (received == 0) *response = UrlForUpload(artifacts_, request->ref());
  response->set_received_bytes(received);
  return grpc::Status::OK;
}

grpc::Status WorkerServiceImpl::FetchArtifact(
    grpc::ServerContext* context, const internal::v1::FetchArtifactRequest* request,
    grpc::ServerWriter<internal::v1::FetchArtifactResponse>* writer) {
  return ToGrpcStatus(Send(*context, *request, *writer));
}

absl::Status WorkerServiceImpl::Send(
    grpc::ServerContext& context, const internal::v1::FetchArtifactRequest& request,
    grpc::ServerWriter<internal::v1::FetchArtifactResponse>& writer) {
  ASSIGN_OR_RETURN(const Principal caller, access_.AdmitWorker(context, "FetchArtifact"));
  ASSIGN_OR_RETURN(const auto place_of_bearer, bearer_streams_.Take("tokens/" + caller.id));
  ASSIGN_OR_RETURN(const internal::v1::TaskRecord task,
                   AdmitLease(context, "FetchArtifact", caller, request.lease()));
  ASSIGN_OR_RETURN(const auto place_of_worker, worker_streams_.Take("workers/" + task.worker()));
  const auto& inputs = task.spec().inputs();
  if (std::none_of(inputs.begin(), inputs.end(), [&](const internal::v1::ArtifactRef& input) {
        return input.sha256() == request.sha256();
      })) {
    return WithErrorInfo(absl::NotFoundError(absl::StrCat("Not an input of task ", task.task_id(),
                                                          ": ", CutUtf8(request.sha256(), 64))),
                         "ARTIFACT_NOT_FOUND");
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactReader> reader, artifacts_.Open(request.sha256()));
  if (request.offset() < 0 || request.offset() > reader->size_bytes()) {
    return WithErrorInfo(
        absl::OutOfRangeError(absl::StrCat("Offset ", request.offset(), " is outside of a file of ",
                                           reader->size_bytes(), " bytes")),
        "OFFSET_BEYOND_END");
  }
  internal::v1::FetchArtifactResponse chunk;
  if (request.accept_url()) {
    if (auto url = UrlInsteadOfBytes(artifacts_, request.sha256(), reader->size_bytes(),
                                     request.offset())) {
      *chunk.mutable_url() = *std::move(url);
      return writer.Write(chunk) ? absl::OkStatus() : absl::CancelledError("The worker went away");
    }
  }
  for (int64_t offset = request.offset(); offset < reader->size_bytes();
       offset += static_cast<int64_t>(chunk.data().size())) {
    RETURN_IF_ERROR(access_.AdmitWorker(context, "FetchArtifact").status());
    ASSIGN_OR_RETURN(*chunk.mutable_data(), reader->Read(offset, kArtifactChunkBytes));
    const PeerWatchdog::Wait wait(
        peers_, EndingOf(context, absl::StrCat("Nothing was read for ",
                                               absl::FormatDuration(peers_.patience()))));
    if (!writer.Write(chunk)) return absl::CancelledError("The worker went away");
  }
  return absl::OkStatus();
}

}  // namespace qpruner::server
