#include "client/testing/fake_job_service.h"

#include <stdlib.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"

namespace qpruner {

void FakeJobService::Fail(const std::string& method, int count, grpc::Status status) {
  absl::MutexLock lock(&mutex_);
  for (int i = 0; i < count; ++i) failures_[method].push_back(status);
}

void FakeJobService::AddFault(const std::string& method, StreamFault fault) {
  absl::MutexLock lock(&mutex_);
  faults_[method].push_back(fault);
}

void FakeJobService::HoldAfter(int64_t events) {
  absl::MutexLock lock(&mutex_);
  hold_after_ = events;
}

void FakeJobService::EndInFailure(const std::string& message) {
  absl::MutexLock lock(&mutex_);
  example_.job.set_state(v1::CompressionJob::FAILED);
  example_.job.clear_report();
  example_.job.mutable_error()->set_code(9);
  example_.job.mutable_error()->set_message(message);
  v1::JobEvent::StateChanged& last = *example_.events.back().mutable_state_changed();
  last.set_state(v1::CompressionJob::FAILED);
  *last.mutable_error() = example_.job.error();
}

void FakeJobService::AddArtifact(const std::string& path, std::string content, std::string sha256) {
  absl::MutexLock lock(&mutex_);
  Stored stored;
  stored.artifact.set_name(absl::StrCat(example_.job.name(), "/artifacts/", path));
  stored.artifact.set_size_bytes(static_cast<int64_t>(content.size()));
  stored.artifact.set_sha256(sha256.empty() ? Sha256Hex(content) : sha256);
  stored.content = std::move(content);
  artifacts_[stored.artifact.name()] = stored;
}

void FakeJobService::GiveUrls(const std::string& base) {
  absl::MutexLock lock(&mutex_);
  url_base_ = base;
}

std::vector<v1::CreateJobRequest> FakeJobService::created() {
  absl::MutexLock lock(&mutex_);
  return created_;
}

int FakeJobService::calls(const std::string& method) {
  absl::MutexLock lock(&mutex_);
  return calls_[method];
}

int64_t FakeJobService::bytes_sent() {
  absl::MutexLock lock(&mutex_);
  return bytes_sent_;
}

grpc::Status FakeJobService::Enter(const std::string& method, const std::string& job) {
  absl::MutexLock lock(&mutex_);
  ++calls_[method];
  std::deque<grpc::Status>& failures = failures_[method];
  if (!failures.empty()) {
    const grpc::Status status = failures.front();
    failures.pop_front();
    return status;
  }
  if (!job.empty() && job != example_.job.name()) {
    return ToGrpcStatus(absl::NotFoundError(absl::StrCat("Job not found: ", job)));
  }
  return grpc::Status::OK;
}

StreamFault FakeJobService::NextFault(const std::string& method) {
  absl::MutexLock lock(&mutex_);
  std::deque<StreamFault>& faults = faults_[method];
  if (faults.empty()) return {.after_messages = 1 << 30};
  const StreamFault fault = faults.front();
  faults.pop_front();
  return fault;
}

grpc::Status FakeJobService::CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request,
                                       v1::CompressionJob* response) {
  {
    absl::MutexLock lock(&mutex_);
    created_.push_back(*request);
  }
  if (grpc::Status status = Enter("CreateJob", ""); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  if (request->job().spec().pruning().ratio() >= 1) {
    return ToGrpcStatus(BadRequestError({{"job.spec.pruning.ratio", "must be in [0, 1)"}}));
  }
  *response = request->job();
  if (!request->validate_only()) {
    response->set_name(example_.job.name());
    response->set_state(v1::CompressionJob::PENDING);
  }
  return grpc::Status::OK;
}

grpc::Status FakeJobService::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                                    v1::CompressionJob* response) {
  if (grpc::Status status = Enter("GetJob", request->name()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  *response = example_.job;
  return grpc::Status::OK;
}

grpc::Status FakeJobService::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                                      v1::ListJobsResponse* response) {
  if (grpc::Status status = Enter("ListJobs", ""); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  *response->add_jobs() = example_.job;
  return grpc::Status::OK;
}

grpc::Status FakeJobService::WatchJob(grpc::ServerContext* context,
                                      const v1::WatchJobRequest* request,
                                      grpc::ServerWriter<v1::JobEvent>* writer) {
  if (grpc::Status status = Enter("WatchJob", request->name()); !status.ok()) return status;
  const StreamFault fault = NextFault("WatchJob");
  std::vector<v1::JobEvent> events;
  int64_t hold_after;
  {
    absl::MutexLock lock(&mutex_);
    events = example_.events;
    hold_after = hold_after_;
  }
  int sent = 0;
  bool skip = fault.damage;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() + (fault.repeat ? 1 : 0) <= request->after_sequence()) continue;
    if (hold_after >= 0 && event.sequence() > hold_after) {
      const auto ended = [this, context]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return cancelled_ || context->IsCancelled();
      };
      absl::MutexLock lock(&mutex_);
      while (!ended()) {
        mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), absl::Milliseconds(20));
      }
      v1::JobEvent last;
      last.set_sequence(event.sequence());
      last.mutable_state_changed()->set_state(v1::CompressionJob::CANCELLED);
      example_.job.set_state(v1::CompressionJob::CANCELLED);
      example_.job.clear_report();
      writer->Write(last);
      return grpc::Status::OK;
    }
    if (sent == fault.after_messages) {
      if (!fault.damage) return grpc::Status(fault.code, "the fake broke the stream");
      if (std::exchange(skip, false)) continue;
    }
    if (!writer->Write(event)) break;
    ++sent;
  }
  return grpc::Status::OK;
}

grpc::Status FakeJobService::CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request,
                                       v1::CompressionJob* response) {
  if (grpc::Status status = Enter("CancelJob", request->name()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  *response = example_.job;
  response->set_state(v1::CompressionJob::CANCELLING);
  return grpc::Status::OK;
}

grpc::Status FakeJobService::PauseJob(grpc::ServerContext*, const v1::PauseJobRequest* request,
                                      v1::CompressionJob* response) {
  if (grpc::Status status = Enter("PauseJob", request->name()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  *response = example_.job;
  response->set_state(v1::CompressionJob::PAUSING);
  return grpc::Status::OK;
}

grpc::Status FakeJobService::ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest* request,
                                       v1::CompressionJob* response) {
  if (grpc::Status status = Enter("ResumeJob", request->name()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  *response = example_.job;
  response->set_state(v1::CompressionJob::RUNNING);
  return grpc::Status::OK;
}

grpc::Status FakeJobService::DeleteJob(grpc::ServerContext*, const v1::DeleteJobRequest* request,
                                       google::protobuf::Empty*) {
  return Enter("DeleteJob", request->name());
}

grpc::Status FakeJobService::ListTrials(grpc::ServerContext*, const v1::ListTrialsRequest* request,
                                        v1::ListTrialsResponse* response) {
  if (grpc::Status status = Enter("ListTrials", request->parent()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  // Small pages, whatever was asked for: a client must follow the tokens.
  constexpr int kPage = 5;
  int first = 0;
  if (!request->page_token().empty() && !absl::SimpleAtoi(request->page_token(), &first)) {
    return ToGrpcStatus(absl::InvalidArgumentError("bad page token"));
  }
  const int end = std::min<int>(first + kPage, static_cast<int>(example_.trials.size()));
  for (int i = first; i < end; ++i) *response->add_trials() = example_.trials[i];
  if (end < static_cast<int>(example_.trials.size())) {
    response->set_next_page_token(absl::StrCat(end));
  }
  return grpc::Status::OK;
}

grpc::Status FakeJobService::GetParetoFront(grpc::ServerContext*,
                                            const v1::GetParetoFrontRequest* request,
                                            v1::ParetoFront* response) {
  if (grpc::Status status = Enter("GetParetoFront", request->name()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  *response = example_.front;
  return grpc::Status::OK;
}

grpc::Status FakeJobService::ListArtifacts(grpc::ServerContext*,
                                           const v1::ListArtifactsRequest* request,
                                           v1::ListArtifactsResponse* response) {
  if (grpc::Status status = Enter("ListArtifacts", request->parent()); !status.ok()) return status;
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, stored] : artifacts_) *response->add_artifacts() = stored.artifact;
  return grpc::Status::OK;
}

grpc::Status FakeJobService::DownloadArtifact(
    grpc::ServerContext*, const v1::DownloadArtifactRequest* request,
    grpc::ServerWriter<v1::DownloadArtifactResponse>* writer) {
  if (grpc::Status status = Enter("DownloadArtifact", ""); !status.ok()) return status;
  const StreamFault fault = NextFault("DownloadArtifact");
  Stored stored;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = artifacts_.find(request->name());
    if (found == artifacts_.end()) {
      return ToGrpcStatus(
          absl::NotFoundError(absl::StrCat("Artifact not found: ", request->name())));
    }
    stored = found->second;
    if (request->accept_url() && !url_base_.empty()) {
      v1::DownloadArtifactResponse response;
      *response.mutable_artifact() = stored.artifact;
      response.mutable_url()->set_url(url_base_ + "/artifact?signature=s3cr3t");
      response.mutable_url()->set_size_bytes(stored.artifact.size_bytes());
      writer->Write(response);
      return grpc::Status::OK;
    }
  }
  constexpr size_t kChunk = 1000;
  size_t offset = static_cast<size_t>(request->offset());
  int sent = 0;
  do {
    v1::DownloadArtifactResponse response;
    if (sent == 0) *response.mutable_artifact() = stored.artifact;
    response.set_data(stored.content.substr(offset, kChunk));
    if (sent >= fault.after_messages) {
      if (!fault.damage) return grpc::Status(fault.code, "the fake broke the stream");
      response.mutable_data()->at(0) ^= 1;
    }
    offset += response.data().size();
    if (!writer->Write(response)) break;
    ++sent;
    absl::MutexLock lock(&mutex_);
    bytes_sent_ += static_cast<int64_t>(response.data().size());
  } while (offset < stored.content.size());
  return grpc::Status::OK;
}

grpc::Status FakeJobService::ListCapabilities(grpc::ServerContext*,
                                              const v1::ListCapabilitiesRequest*,
                                              v1::ListCapabilitiesResponse* response) {
  if (grpc::Status status = Enter("ListCapabilities", ""); !status.ok()) return status;
  response->set_server_version("0.1.0");
  response->add_model_types("llama");
  response->add_candidate_bits(4);
  response->add_candidate_bits(8);
  response->add_uri_schemes("builtin");
  v1::ListCapabilitiesResponse::Worker& worker = *response->add_workers();
  worker.set_name("local-1");
  worker.set_device("cpu");
  worker.set_device_memory_bytes(8LL << 30);
  return grpc::Status::OK;
}

FakeJobServer::FakeJobServer() {
  std::string pattern = (std::filesystem::temp_directory_path() / "qpruner-fake-XXXXXX").string();
  folder_ = mkdtemp(pattern.data());
  address_ = absl::StrCat("unix:", folder_, "/socket");
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
  builder.RegisterService(&service_);
  server_ = builder.BuildAndStart();
}

FakeJobServer::~FakeJobServer() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  std::filesystem::remove_all(folder_);
}

}  // namespace qpruner
