#include "tests/testing/job_outcome.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"

namespace qpruner {
namespace {

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
}

}  // namespace

absl::StatusOr<std::string> JobOutcome(v1::JobService::StubInterface& jobs,
                                       const std::string& name) {
  std::string text;
  {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ListTrialsRequest request;
    v1::ListTrialsResponse response;
    request.set_parent(name);
    RETURN_IF_ERROR(FromGrpcStatus(jobs.ListTrials(&context, request, &response)));
    for (v1::Trial& trial : *response.mutable_trials()) {
      trial.clear_name();
      trial.clear_worker();
      trial.clear_attempt_count();
      trial.clear_start_time();
      trial.clear_end_time();
      trial.mutable_metrics()->clear_tokens_per_second();
      if (trial.has_test_metrics()) trial.mutable_test_metrics()->clear_tokens_per_second();
      absl::StrAppend(&text, trial.ShortDebugString(), "\n");
    }
  }
  {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetParetoFrontRequest request;
    v1::ParetoFront front;
    request.set_name(name);
    RETURN_IF_ERROR(FromGrpcStatus(jobs.GetParetoFront(&context, request, &front)));
    for (v1::ParetoPoint& point : *front.mutable_points()) {
      point.clear_trial();
      absl::StrAppend(&text, point.ShortDebugString(), "\n");
    }
  }
  {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetJobRequest request;
    v1::CompressionJob job;
    request.set_name(name);
    RETURN_IF_ERROR(FromGrpcStatus(jobs.GetJob(&context, request, &job)));
    for (v1::JobReport::Row& row : *job.mutable_report()->mutable_rows()) {
      row.clear_trial();
      row.mutable_metrics()->clear_tokens_per_second();
    }
    job.mutable_report()->clear_task_uses();
    job.mutable_report()->clear_chosen_trial();
    absl::StrAppend(&text, job.report().DebugString());
  }
  {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ListArtifactsRequest request;
    v1::ListArtifactsResponse response;
    request.set_parent(name);
    RETURN_IF_ERROR(FromGrpcStatus(jobs.ListArtifacts(&context, request, &response)));
    for (const v1::Artifact& artifact : response.artifacts()) {
      absl::StrAppend(&text, artifact.name().substr(artifact.name().find("/artifacts/")), " ",
                      artifact.sha256(), "\n");
    }
  }
  return text;
}

}  // namespace qpruner
