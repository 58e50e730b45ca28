// A server of WorkerService that hands out what a test puts in, and can fail in any way it may.
#ifndef QPRUNER_WORKER_TESTING_FAKE_WORKER_SERVER_H_
#define QPRUNER_WORKER_TESTING_FAKE_WORKER_SERVER_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/sha256.h"
#include "grpcpp/grpcpp.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"

namespace qpruner::worker {

// Thread-safe.
class FakeWorkerServer final : public internal::v1::WorkerService::Service {
 public:
  // Reached without a network.
  FakeWorkerServer() {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    stub_ = internal::v1::WorkerService::NewStub(server_->InProcessChannel({}));
  }
  ~FakeWorkerServer() override {
    {
      absl::MutexLock lock(&mutex_);
      closing_ = true;
    }
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  }
  internal::v1::WorkerService::StubInterface& stub() { return *stub_; }

  // Makes the next calls of a method ("Heartbeat", ...) fail with these codes, one each, before
  // they do anything.
  void FailNext(const std::string& method, std::vector<grpc::StatusCode> codes) {
    absl::MutexLock lock(&mutex_);
    for (const grpc::StatusCode code : codes) {
      failures_[method].push_back(grpc::Status(code, "As scripted"));
    }
  }
  // The same for one call, details included.
  void FailNext(const std::string& method, const absl::Status& failure) {
    absl::MutexLock lock(&mutex_);
    failures_[method].push_back(ToGrpcStatus(failure));
  }
  // Makes a method fail until told otherwise (OK).
  void FailAlways(const std::string& method, grpc::StatusCode code) {
    absl::MutexLock lock(&mutex_);
    always_[method] = code;
  }
  // From now on another process has the worker's name.
  void ReplaceWorker() {
    absl::MutexLock lock(&mutex_);
    replaced_ = true;
  }
  void Want(internal::v1::HeartbeatResponse::DesiredState state) {
    absl::MutexLock lock(&mutex_);
    desired_state_ = state;
  }
  // Queues a task whose script the engine follows; returns its lease token.
  std::string Queue(const std::string& script, const std::string& job = "projects/p/jobs/j",
                    const std::vector<internal::v1::ArtifactRef>& inputs = {}) {
    absl::MutexLock lock(&mutex_);
    internal::v1::AcquireTaskResponse task;
    task.mutable_lease()->set_job(job);
    task.mutable_lease()->set_task("trial-1");
    task.mutable_lease()->set_attempt(1);
    task.mutable_lease()->set_token("token-" + std::to_string(++tokens_));
    task.mutable_task()->mutable_spec()->mutable_model()->set_uri(script);
    task.mutable_task()->mutable_inputs()->Add(inputs.begin(), inputs.end());
    task.mutable_task()->mutable_trial();
    queue_.push_back(task);
    return task.lease().token();
  }
  // The same with a task that reads the model at `uri`.
  void QueuePrepare(const std::string& uri) {
    Queue(uri);
    absl::MutexLock lock(&mutex_);
    queue_.back().mutable_task()->mutable_prepare();
  }
  internal::v1::ArtifactRef Store(const std::string& path, const std::string& content) {
    internal::v1::ArtifactRef ref;
    ref.set_path(path);
    ref.set_sha256(Sha256Hex(content));
    ref.set_size_bytes(static_cast<int64_t>(content.size()));
    absl::MutexLock lock(&mutex_);
    artifacts_[ref.sha256()] = content;
    return ref;
  }
  // Sent instead of the true content, once.
  void CorruptNextFetch(const std::string& content) {
    absl::MutexLock lock(&mutex_);
    corrupt_fetches_.push_back(content);
  }
  // The next fetch breaks off after so many bytes.
  void BreakNextFetchAfter(int64_t bytes) {
    absl::MutexLock lock(&mutex_);
    break_after_ = bytes;
  }
  // From now on fetches that accept one, and uploads, get a URL, BASE/SHA256?signature=s3cr3t.
  void GiveUrls(const std::string& base) {
    absl::MutexLock lock(&mutex_);
    url_base_ = base;
  }

  // Each waits until there is something to return. A test that waits in vain times out.
  internal::v1::CompleteTaskRequest WaitForCompletion(size_t number = 1) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return completions_.size() >= number;
    };
    mutex_.Await(absl::Condition(&there));
    return completions_[number - 1];
  }
  internal::v1::HeartbeatRequest WaitForHeartbeat(
      const std::function<bool(const internal::v1::HeartbeatRequest&)>& wanted) {
    absl::MutexLock lock(&mutex_);
    size_t seen = 0;
    internal::v1::HeartbeatRequest found;
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      for (; seen < heartbeats_.size(); ++seen) {
        if (wanted(heartbeats_[seen])) {
          found = heartbeats_[seen];
          return true;
        }
      }
      return false;
    };
    mutex_.Await(absl::Condition(&there));
    return found;
  }
  void WaitForCalls(const std::string& method, int count) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return calls_[method] >= count;
    };
    mutex_.Await(absl::Condition(&there));
  }

  int calls(const std::string& method) {
    absl::MutexLock lock(&mutex_);
    return calls_[method];
  }
  std::vector<internal::v1::HeartbeatRequest> heartbeats() {
    absl::MutexLock lock(&mutex_);
    return heartbeats_;
  }
  size_t completion_count() {
    absl::MutexLock lock(&mutex_);
    return completions_.size();
  }
  std::vector<internal::v1::RegisterWorkerRequest> registrations() {
    absl::MutexLock lock(&mutex_);
    return registrations_;
  }
  // The next upload is cut off after its first message, which is kept.
  void CutNextUpload() {
    absl::MutexLock lock(&mutex_);
    cut_upload_ = true;
  }
  std::vector<int64_t> upload_offsets() {
    absl::MutexLock lock(&mutex_);
    return upload_offsets_;
  }
  std::vector<int64_t> fetch_offsets() {
    absl::MutexLock lock(&mutex_);
    return fetch_offsets_;
  }
  std::vector<internal::v1::SaveCheckpointRequest> checkpoints() {
    absl::MutexLock lock(&mutex_);
    return checkpoints_;
  }
  // By path.
  std::map<std::string, std::string> uploads() {
    absl::MutexLock lock(&mutex_);
    return uploads_;
  }

  grpc::Status RegisterWorker(grpc::ServerContext*,
                              const internal::v1::RegisterWorkerRequest* request,
                              internal::v1::RegisterWorkerResponse* response) override {
    absl::MutexLock lock(&mutex_);
    if (grpc::Status failed = Enter("RegisterWorker"); !failed.ok()) return failed;
    registrations_.push_back(*request);
    response->mutable_lease_duration()->set_seconds(60);
    response->mutable_heartbeat_interval()->set_nanos(5'000'000);
    return grpc::Status::OK;
  }
  grpc::Status AcquireTask(grpc::ServerContext* context, const internal::v1::AcquireTaskRequest*,
                           internal::v1::AcquireTaskResponse* response) override {
    absl::MutexLock lock(&mutex_);
    if (grpc::Status failed = Enter("AcquireTask"); !failed.ok()) return failed;
    if (replaced_) {
      return ToGrpcStatus(WithErrorInfo(absl::AbortedError("Another process"), "WORKER_REPLACED"));
    }
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return closing_ || !queue_.empty();
    };
    mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Milliseconds(50));
    if (!queue_.empty() && !context->IsCancelled()) {
      *response = queue_.front();
      queue_.pop_front();
    }
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const internal::v1::HeartbeatRequest* request,
                         internal::v1::HeartbeatResponse* response) override {
    absl::MutexLock lock(&mutex_);
    if (grpc::Status failed = Enter("Heartbeat"); !failed.ok()) return failed;
    heartbeats_.push_back(*request);
    response->set_desired_state(desired_state_);
    return grpc::Status::OK;
  }
  grpc::Status CompleteTask(grpc::ServerContext*, const internal::v1::CompleteTaskRequest* request,
                            google::protobuf::Empty*) override {
    absl::MutexLock lock(&mutex_);
    if (grpc::Status failed = Enter("CompleteTask"); !failed.ok()) return failed;
    completions_.push_back(*request);
    return grpc::Status::OK;
  }
  grpc::Status SaveCheckpoint(grpc::ServerContext*,
                              const internal::v1::SaveCheckpointRequest* request,
                              google::protobuf::Empty*) override {
    absl::MutexLock lock(&mutex_);
    if (grpc::Status failed = Enter("SaveCheckpoint"); !failed.ok()) return failed;
    checkpoints_.push_back(*request);
    return grpc::Status::OK;
  }
  grpc::Status PrepareUpload(grpc::ServerContext*,
                             const internal::v1::PrepareUploadRequest* request,
                             internal::v1::PrepareUploadResponse* response) override {
    absl::MutexLock lock(&mutex_);
    if (grpc::Status failed = Enter("PrepareUpload"); !failed.ok()) return failed;
    if (const auto cut = cut_uploads_.find(request->ref().sha256()); cut != cut_uploads_.end()) {
      response->set_received_bytes(static_cast<int64_t>(cut->second.size()));
    } else if (!url_base_.empty()) {
      response->mutable_url()->set_url(url_base_ + "/" + request->ref().sha256() +
                                       "?signature=s3cr3t");
      (*response->mutable_headers())["x-checksum"] = request->ref().sha256();
    }
    return grpc::Status::OK;
  }
  grpc::Status UploadArtifact(grpc::ServerContext*,
                              grpc::ServerReader<internal::v1::UploadArtifactRequest>* reader,
                              google::protobuf::Empty*) override {
    {
      absl::MutexLock lock(&mutex_);
      if (grpc::Status failed = Enter("UploadArtifact"); !failed.ok()) return failed;
    }
    internal::v1::UploadArtifactRequest request;
    internal::v1::ArtifactRef ref;
    std::string content;
    while (reader->Read(&request)) {
      absl::MutexLock lock(&mutex_);
      if (request.has_ref()) {
        ref = request.ref();
        upload_offsets_.push_back(request.offset());
        if (const auto cut = cut_uploads_.extract(ref.sha256())) {
          content = cut.mapped().substr(0, static_cast<size_t>(request.offset()));
        }
      }
      content += request.data();
      if (std::exchange(cut_upload_, false)) {
        cut_uploads_[ref.sha256()] = content;
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Cut");
      }
    }
    if (Sha256Hex(content) != ref.sha256()) {
      return grpc::Status(grpc::StatusCode::DATA_LOSS, "SHA-256 does not match");
    }
    absl::MutexLock lock(&mutex_);
    uploads_[ref.path()] = content;
    return grpc::Status::OK;
  }
  grpc::Status FetchArtifact(
      grpc::ServerContext*, const internal::v1::FetchArtifactRequest* request,
      grpc::ServerWriter<internal::v1::FetchArtifactResponse>* writer) override {
    std::string content;
    bool broken = false;
    {
      absl::MutexLock lock(&mutex_);
      if (grpc::Status failed = Enter("FetchArtifact"); !failed.ok()) return failed;
      fetch_offsets_.push_back(request->offset());
      if (!corrupt_fetches_.empty()) {
        content = corrupt_fetches_.front();
        corrupt_fetches_.pop_front();
      } else if (artifacts_.count(request->sha256()) == 0) {
        return grpc::Status(grpc::StatusCode::NOT_FOUND, "No such artifact");
      } else {
        content = artifacts_[request->sha256()];
      }
      if (request->accept_url() && !url_base_.empty()) {
        internal::v1::FetchArtifactResponse response;
        response.mutable_url()->set_url(url_base_ + "/" + request->sha256() + "?signature=s3cr3t");
        response.mutable_url()->set_size_bytes(static_cast<int64_t>(content.size()));
        writer->Write(response);
        return grpc::Status::OK;
      }
      content.erase(0, static_cast<size_t>(request->offset()));
      if (break_after_ >= 0) {
        content.resize(static_cast<size_t>(break_after_));
        break_after_ = -1;
        broken = true;
      }
    }
    internal::v1::FetchArtifactResponse response;
    for (size_t at = 0; at < content.size(); at += 7) {
      response.set_data(content.substr(at, 7));
      writer->Write(response);
    }
    return broken ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "Cut") : grpc::Status::OK;
  }

 private:
  grpc::Status Enter(const std::string& method) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ++calls_[method];
    if (auto& failures = failures_[method]; !failures.empty()) {
      const grpc::Status failure = failures.front();
      failures.pop_front();
      return failure;
    }
    const auto always = always_.find(method);
    return always == always_.end() || always->second == grpc::StatusCode::OK
               ? grpc::Status::OK
               : grpc::Status(always->second, "As scripted");
  }

  absl::Mutex mutex_;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool replaced_ ABSL_GUARDED_BY(mutex_) = false;
  int tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string url_base_ ABSL_GUARDED_BY(mutex_);
  int64_t break_after_ ABSL_GUARDED_BY(mutex_) = -1;
  internal::v1::HeartbeatResponse::DesiredState desired_state_ ABSL_GUARDED_BY(mutex_) =
      internal::v1::HeartbeatResponse::CONTINUE;
  std::map<std::string, int> calls_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::deque<grpc::Status>> failures_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, grpc::StatusCode> always_ ABSL_GUARDED_BY(mutex_);
  std::deque<internal::v1::AcquireTaskResponse> queue_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> corrupt_fetches_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> artifacts_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> uploads_ ABSL_GUARDED_BY(mutex_);
  std::vector<internal::v1::HeartbeatRequest> heartbeats_ ABSL_GUARDED_BY(mutex_);
  std::vector<internal::v1::CompleteTaskRequest> completions_ ABSL_GUARDED_BY(mutex_);
  std::vector<internal::v1::SaveCheckpointRequest> checkpoints_ ABSL_GUARDED_BY(mutex_);
  std::vector<internal::v1::RegisterWorkerRequest> registrations_ ABSL_GUARDED_BY(mutex_);
  bool cut_upload_ ABSL_GUARDED_BY(mutex_) = false;
  // What is there of uploads that were cut off, by SHA-256.
  std::map<std::string, std::string> cut_uploads_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> upload_offsets_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> fetch_offsets_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::WorkerService::Stub> stub_;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_TESTING_FAKE_WORKER_SERVER_H_
