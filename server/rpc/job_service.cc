#include "server/rpc/job_service.h"

#include <algorithm>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "server/queue/job_not_found.h"
#include "server/queue/search_view.h"
#include "server/rpc/download_stream.h"
#include "server/rpc/refused_stream.h"
#include "server/rpc/watch_stream.h"
#include "server/validation/capabilities.h"

namespace qpruner::server {
namespace {

constexpr int kDefaultJobPage = 50;
constexpr int kMaxJobPage = 500;
constexpr int kDefaultTrialPage = 100;
constexpr int kMaxTrialPage = 1000;
// GetJob calls that wait for a thread and a connection of the database.
constexpr size_t kMostReads = 2048;

absl::StatusOr<JobName> ParseJobName(const std::string& field, const std::string& name) {
  absl::StatusOr<JobName> parsed = JobName::Parse(name);
  if (parsed.ok()) return parsed;
  return BadRequestError({{field, std::string(parsed.status().message())}});
}

// Large sizes are cut, none means the default, negative ones are refused.
absl::StatusOr<int> PageSize(int32_t asked, int normal, int largest) {
  if (asked < 0) {
    return BadRequestError({{"page_size", absl::StrCat("must not be negative, is ", asked)}});
  }
  return asked == 0 ? normal : std::min<int>(asked, largest);
}

absl::Status BadPageToken() {
  return BadRequestError({{"page_token", "must be one that this method returned"}});
}

// Reads one job and whatever `more` wants from the same snapshot.
absl::Status ReadJob(JobStore& store, const JobName& name, internal::v1::JobRecord& record,
                     absl::FunctionRef<absl::Status(StoreReader&)> more) {
  absl::Status status = store.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(record, reader.GetJob(name));
    return more(reader);
  });
  return absl::IsNotFound(status) ? JobNotFound(name) : status;
}

absl::Status DoListJobs(JobStore& store, const Principal& caller,
                        const v1::ListJobsRequest& request, v1::ListJobsResponse& response) {
  std::vector<FieldViolation> violations;
  JobFilter filter{.project = "default"};
  if (!request.parent().empty()) {
    absl::StatusOr<std::string> project = ParseProjectName(request.parent());
    if (project.ok()) {
      filter.project = *project;
    } else {
      violations.push_back({"parent", std::string(project.status().message())});
    }
  }
  for (int i = 0; i < request.states_size(); ++i) {
    if (request.states(i) == v1::CompressionJob::STATE_UNSPECIFIED ||
        !v1::CompressionJob::State_IsValid(request.states(i))) {
      violations.push_back({absl::StrCat("states[", i, "]"), "is not a state of a job"});
      continue;
    }
    filter.states.push_back(request.states(i));
  }
  filter.labels.insert(request.labels().begin(), request.labels().end());
  for (const FieldViolation& violation : LabelViolations("labels", request.labels())) {
    violations.push_back(violation);
  }
  if (!violations.empty()) return BadRequestError(violations);
  RETURN_IF_ERROR(CheckProjectAccess(caller, filter.project));
  ASSIGN_OR_RETURN(const int page_size,
                   PageSize(request.page_size(), kDefaultJobPage, kMaxJobPage));
  StoreReader::JobPage page;
  absl::Status status = store.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(page, reader.ListJobs(filter, page_size, request.page_token()));
    return absl::OkStatus();
  });
  if (absl::IsInvalidArgument(status)) return BadPageToken();
  RETURN_IF_ERROR(status);
  for (v1::CompressionJob& job : page.jobs) {
    if (job.has_report()) {
      job.mutable_report()->clear_fine_tune_curve();
      job.mutable_report()->clear_task_uses();
    }
    *response.add_jobs() = std::move(job);
  }
  response.set_next_page_token(page.next_page_token);
  return absl::OkStatus();
}

absl::Status DoListTrials(JobStore& store, const JobName& name,
                          const v1::ListTrialsRequest& request, v1::ListTrialsResponse& response) {
  ASSIGN_OR_RETURN(const int page_size,
                   PageSize(request.page_size(), kDefaultTrialPage, kMaxTrialPage));
  // The token is the last index of the page before.
  int after = 0;
  if (!request.page_token().empty() &&
      (!absl::SimpleAtoi(request.page_token(), &after) || after <= 0)) {
    return BadPageToken();
  }
  internal::v1::JobRecord record;
  std::vector<v1::Trial> trials;
  RETURN_IF_ERROR(ReadJob(store, name, record, [&](StoreReader& reader) -> absl::Status {
    // One more than asked for tells whether there is a next page.
    ASSIGN_OR_RETURN(trials, reader.ListTrials(name, after, page_size + 1));
    return absl::OkStatus();
  }));
  if (static_cast<int>(trials.size()) > page_size) {
    trials.resize(page_size);
    response.set_next_page_token(absl::StrCat(trials.back().index()));
  }
  for (v1::Trial& trial : trials) *response.add_trials() = std::move(trial);
  return absl::OkStatus();
}

absl::Status DoGetParetoFront(JobStore& store, const JobName& name, v1::ParetoFront& response) {
  internal::v1::JobRecord record;
  std::vector<v1::Trial> trials;
  RETURN_IF_ERROR(ReadJob(store, name, record, [&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(trials, reader.ListTrials(name, 0, 0));
    return absl::OkStatus();
  }));
  if (!record.has_prepare()) {
    response.set_quality_metric(record.job().spec().search().quality_metric());
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(response, BuildFront(record.prepare(), record.job().spec(), trials,
                                        record.chosen_trial_index()));
  return absl::OkStatus();
}

absl::Status DoListArtifacts(JobStore& store, const JobName& name,
                             v1::ListArtifactsResponse& response) {
  internal::v1::JobRecord record;
  return ReadJob(store, name, record, [&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(std::vector<v1::Artifact> artifacts, reader.ListArtifacts(name));
    response.clear_artifacts();
    for (v1::Artifact& artifact : artifacts) *response.add_artifacts() = std::move(artifact);
    return absl::OkStatus();
  });
}

// A place for a stream about `job` that was admitted; none for a name that is none, which the
// stream itself refuses.
absl::StatusOr<std::unique_ptr<StreamLimit::Place>> TakePlace(StreamLimit& limit,
                                                              const absl::StatusOr<JobName>& job) {
  if (!job.ok()) return nullptr;
  return limit.Take("projects/" + job->project);
}

}  // namespace

absl::StatusOr<JobServiceImpl::Admitted> JobServiceImpl::Admit(
    const grpc::ServerContextBase& context, absl::string_view method, const std::string& field,
    const std::string& name) {
  ASSIGN_OR_RETURN(Principal caller, access_.AdmitClient(context, method));
  ASSIGN_OR_RETURN(JobName job, ParseJobName(field, name));
  if (absl::Status status = CheckJobAccess(caller, job); !status.ok()) {
    return access_.AuditRefusal(context, caller, method, name, status);
  }
  return Admitted{std::move(caller), std::move(job)};
}

grpc::Status JobServiceImpl::CreateJob(grpc::ServerContext* context,
                                       const v1::CreateJobRequest* request,
                                       v1::CompressionJob* response) {
  absl::StatusOr<Principal> caller = access_.AdmitClient(*context, "CreateJob");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  absl::StatusOr<NewJob> job = ValidateCreateJob(*request, validation_);
  if (!job.ok()) return ToGrpcStatus(job.status());
  if (absl::Status status = CheckProjectAccess(*caller, job->project); !status.ok()) {
    return ToGrpcStatus(
        access_.AuditRefusal(*context, *caller, "CreateJob", request->parent(), status));
  }
  if (request->validate_only()) {
    *response = std::move(job->job);
    return grpc::Status::OK;
  }
  absl::StatusOr<v1::CompressionJob> created = queue_.CreateJob(*job);
  access_.Audit(*context, *caller, "CreateJob", created.ok() ? created->name() : request->parent(),
                created.status());
  if (!created.ok()) return ToGrpcStatus(created.status());
  *response = *std::move(created);
  return grpc::Status::OK;
}

grpc::ServerUnaryReactor* JobServiceImpl::GetJob(grpc::CallbackServerContext* context,
                                                 const v1::GetJobRequest* request,
                                                 v1::CompressionJob* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::StatusOr<Admitted> admitted = Admit(*context, "GetJob", "name", request->name());
  if (!admitted.ok()) {
    reactor->Finish(ToGrpcStatus(admitted.status()));
    return reactor;
  }
  // gRPC keeps response and reactor until the call is finished.
  const auto show = [job = admitted->job, response](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(*response, reader.ShowJob(job));
    return absl::OkStatus();
  };
  const auto finish = [job = admitted->job, reactor](const absl::Status& read) {
    reactor->Finish(ToGrpcStatus(absl::IsNotFound(read) ? JobNotFound(job) : read));
  };
  if (const std::optional<absl::Status> read = store_.ReadAtOnce(show)) {
    finish(*read);
  } else if (!reads_.TryAdd([this, show, finish] { finish(store_.Read(show)); }, kMostReads)) {
    finish(QuotaError("TOO_MANY_READS", "server",
                      absl::StrCat("More than ", kMostReads, " reads wait for the database"),
                      absl::Seconds(1)));
  }
  return reactor;
}

grpc::Status JobServiceImpl::ListJobs(grpc::ServerContext* context,
                                      const v1::ListJobsRequest* request,
                                      v1::ListJobsResponse* response) {
  const absl::StatusOr<Principal> caller = access_.AdmitClient(*context, "ListJobs");
  if (!caller.ok()) return ToGrpcStatus(caller.status());
  const absl::Status status = DoListJobs(store_, *caller, *request, *response);
  if (ErrorReason(status) == kProjectNotAllowed) {
    access_.AuditRefusal(*context, *caller, "ListJobs", request->parent(), status).IgnoreError();
  }
  return ToGrpcStatus(status);
}

absl::StatusOr<Principal> JobServiceImpl::AdmitStream(const grpc::ServerContextBase& context,
                                                      absl::string_view method,
                                                      const std::string& name,
                                                      const absl::StatusOr<JobName>& job) {
  ASSIGN_OR_RETURN(Principal caller, access_.AdmitClient(context, method));
  if (!job.ok()) return caller;
  if (absl::Status status = CheckJobAccess(caller, *job); !status.ok()) {
    return access_.AuditRefusal(context, caller, method, name, status);
  }
  return caller;
}

grpc::ServerWriteReactor<v1::JobEvent>* JobServiceImpl::WatchJob(
    grpc::CallbackServerContext* context, const v1::WatchJobRequest* request) {
  // gRPC keeps the context until the stream is done.
  const auto admit = [this, context, name = request->name(),
                      job = JobName::Parse(request->name())] {
    return AdmitStream(*context, "WatchJob", name, job).status();
  };
  if (absl::Status status = admit(); !status.ok()) {
    return RefusedStream<v1::JobEvent>::Start(status);
  }
  auto place = TakePlace(watch_limit_, JobName::Parse(request->name()));
  if (!place.ok()) return RefusedStream<v1::JobEvent>::Start(place.status());
  return StartWatchStream(*context, *request, events_, watches_, peers_, admit, *std::move(place));
}

grpc::Status JobServiceImpl::MoveJob(
    const grpc::ServerContextBase& context, absl::string_view method, const std::string& name,
    absl::StatusOr<v1::CompressionJob> (JobQueue::*move)(const JobName&),
    v1::CompressionJob& response) {
  const absl::StatusOr<Admitted> admitted = Admit(context, method, "name", name);
  if (!admitted.ok()) return ToGrpcStatus(admitted.status());
  absl::StatusOr<v1::CompressionJob> job = (queue_.*move)(admitted->job);
  access_.Audit(context, admitted->caller, method, name, job.status());
  if (!job.ok()) return ToGrpcStatus(job.status());
  response = *std::move(job);
  return grpc::Status::OK;
}

grpc::Status JobServiceImpl::CancelJob(grpc::ServerContext* context,
                                       const v1::CancelJobRequest* request,
                                       v1::CompressionJob* response) {
  return MoveJob(*context, "CancelJob", request->name(), &JobQueue::CancelJob, *response);
}

grpc::Status JobServiceImpl::PauseJob(grpc::ServerContext* context,
                                      const v1::PauseJobRequest* request,
                                      v1::CompressionJob* response) {
  return MoveJob(*context, "PauseJob", request->name(), &JobQueue::PauseJob, *response);
}

grpc::Status JobServiceImpl::ResumeJob(grpc::ServerContext* context,
                                       const v1::ResumeJobRequest* request,
                                       v1::CompressionJob* response) {
  return MoveJob(*context, "ResumeJob", request->name(), &JobQueue::ResumeJob, *response);
}

grpc::Status JobServiceImpl::DeleteJob(grpc::ServerContext* context,
                                       const v1::DeleteJobRequest* request,
                                       google::protobuf::Empty*) {
  const absl::StatusOr<Admitted> admitted = Admit(*context, "DeleteJob", "name", request->name());
  if (!admitted.ok()) return ToGrpcStatus(admitted.status());
  const absl::Status status = queue_.DeleteJob(admitted->job);
  access_.Audit(*context, admitted->caller, "DeleteJob", request->name(), status);
  return ToGrpcStatus(status);
}

grpc::Status JobServiceImpl::ListTrials(grpc::ServerContext* context,
                                        const v1::ListTrialsRequest* request,
                                        v1::ListTrialsResponse* response) {
  const absl::StatusOr<Admitted> admitted =
      Admit(*context, "ListTrials", "parent", request->parent());
  if (!admitted.ok()) return ToGrpcStatus(admitted.status());
  return ToGrpcStatus(DoListTrials(store_, admitted->job, *request, *response));
}

grpc::Status JobServiceImpl::GetParetoFront(grpc::ServerContext* context,
                                            const v1::GetParetoFrontRequest* request,
                                            v1::ParetoFront* response) {
  const absl::StatusOr<Admitted> admitted =
      Admit(*context, "GetParetoFront", "name", request->name());
  if (!admitted.ok()) return ToGrpcStatus(admitted.status());
  return ToGrpcStatus(DoGetParetoFront(store_, admitted->job, *response));
}

grpc::Status JobServiceImpl::ListArtifacts(grpc::ServerContext* context,
                                           const v1::ListArtifactsRequest* request,
                                           v1::ListArtifactsResponse* response) {
  const absl::StatusOr<Admitted> admitted =
      Admit(*context, "ListArtifacts", "parent", request->parent());
  if (!admitted.ok()) return ToGrpcStatus(admitted.status());
  return ToGrpcStatus(DoListArtifacts(store_, admitted->job, *response));
}

grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* JobServiceImpl::DownloadArtifact(
    grpc::CallbackServerContext* context, const v1::DownloadArtifactRequest* request) {
  const absl::StatusOr<ArtifactName> name = ArtifactName::Parse(request->name());
  const absl::StatusOr<JobName> job =
      name.ok() ? absl::StatusOr<JobName>(name->job) : name.status();
  const auto admit = [this, context, name = request->name(), job] {
    return AdmitStream(*context, "DownloadArtifact", name, job);
  };
  absl::StatusOr<Principal> caller = admit();
  if (!caller.ok()) return RefusedStream<v1::DownloadArtifactResponse>::Start(caller.status());
  const auto opened = [this, context, name = request->name(), caller = *std::move(caller)] {
    access_.Audit(*context, caller, "DownloadArtifact", name, absl::OkStatus());
  };
  auto place = TakePlace(download_limit_, job);
  if (!place.ok()) return RefusedStream<v1::DownloadArtifactResponse>::Start(place.status());
  return StartDownloadStream(
      *context, *request, store_, artifacts_, downloads_, peers_,
      [admit] { return admit().status(); }, opened, *std::move(place));
}

grpc::Status JobServiceImpl::ListCapabilities(grpc::ServerContext* context,
                                              const v1::ListCapabilitiesRequest*,
                                              v1::ListCapabilitiesResponse* response) {
  if (const auto caller = access_.AdmitClient(*context, "ListCapabilities"); !caller.ok()) {
    return ToGrpcStatus(caller.status());
  }
  response->set_server_version(version_);
  for (const char* type : kModelTypes) response->add_model_types(type);
  for (int bits : kCandidateBits) response->add_candidate_bits(bits);
  for (auto format : kFourBitFormats) response->add_four_bit_formats(format);
  for (auto format : kEightBitFormats) response->add_eight_bit_formats(format);
  for (auto format : kLowBitFormats) response->add_low_bit_formats(format);
  for (auto importance : kImportances) response->add_importances(importance);
  for (auto algorithm : kAlgorithms) response->add_algorithms(algorithm);
  for (const char* scheme : kUriSchemes) response->add_uri_schemes(scheme);
  for (auto& worker : queue_.LiveWorkers()) *response->add_workers() = std::move(worker);
  return grpc::Status::OK;
}

}  // namespace qpruner::server
