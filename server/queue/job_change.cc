#include "server/queue/job_change.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "server/queue/job_limits.h"
#include "server/queue/job_states.h"

namespace qpruner::server {

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t nanoseconds = absl::ToUnixNanos(time);
  timestamp.set_seconds(nanoseconds / 1'000'000'000);
  timestamp.set_nanos(static_cast<int32_t>(nanoseconds % 1'000'000'000));
  return timestamp;
}

absl::Time FromTimestamp(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) + absl::Nanoseconds(timestamp.nanos());
}

void AddArtifactBytes(int64_t bytes, internal::v1::JobRecord& record) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  record.set_artifact_bytes(record.artifact_bytes() +
                            std::min(bytes, kMost - record.artifact_bytes()));
}

absl::StatusOr<JobChange> JobChange::Load(StoreTransaction& store, const JobName& name,
                                          ChangeTime now) {
  ASSIGN_OR_RETURN(internal::v1::JobRecord record, store.GetJob(name));
  return JobChange(store, name, std::move(record), now);
}

absl::StatusOr<JobChange> JobChange::Insert(StoreTransaction& store, const JobName& name,
                                            const internal::v1::JobRecord& record, ChangeTime now) {
  RETURN_IF_ERROR(store.InsertJob(record));
  JobChange change(store, name, record, now);
  RETURN_IF_ERROR(change.AppendState());
  return change;
}

absl::Status JobChange::Append(v1::JobEvent event) {
  event.set_sequence(record_.job().last_event_sequence() + 1);
  *event.mutable_time() = ToTimestamp(now_.wall);
  record_.mutable_job()->set_last_event_sequence(event.sequence());
  return store_->AppendEvent(name_, event);
}

absl::Status JobChange::AppendState() {
  v1::JobEvent event;
  v1::JobEvent::StateChanged& changed = *event.mutable_state_changed();
  changed.set_state(job().state());
  changed.set_stage(job().stage());
  if (job().has_error()) *changed.mutable_error() = job().error();
  return Append(std::move(event));
}

absl::Status JobChange::EnterState(v1::CompressionJob::State state,
                                   const google::rpc::Status* error) {
  v1::CompressionJob& job = *record_.mutable_job();
  if (!CanTransition(job.state(), state)) {
    return absl::InternalError(
        absl::StrCat("No transition from ", v1::CompressionJob::State_Name(job.state()), " to ",
                     v1::CompressionJob::State_Name(state), " for ", job.name()));
  }
  job.set_state(state);
  if (error != nullptr) *job.mutable_error() = *error;
  if (state == v1::CompressionJob::RUNNING && !job.has_start_time()) {
    *job.mutable_start_time() = ToTimestamp(now_.wall);
    *record_.mutable_running_since() = ToTimestamp(now_.limits);
    job.set_stage(v1::CompressionJob::PREPARE);
  }
  if (IsFinal(state)) {
    *job.mutable_end_time() = ToTimestamp(now_.wall);
    job.set_stage(v1::CompressionJob::STAGE_UNSPECIFIED);
  }
  return AppendState();
}

absl::Status JobChange::EnterStage(v1::CompressionJob::Stage stage) {
  record_.mutable_job()->set_stage(stage);
  if (stage == v1::CompressionJob::SEARCH) {
    *record_.mutable_searching_since() = ToTimestamp(now_.limits);
  } else {
    record_.clear_searching_since();
  }
  return AppendState();
}

absl::Status JobChange::PutTrial(const v1::Trial& trial) {
  RETURN_IF_ERROR(store_->PutTrial(name_, trial));
  v1::JobEvent event;
  *event.mutable_trial_updated() = trial;
  return Append(std::move(event));
}

absl::Status JobChange::PutArtifact(const internal::v1::ArtifactRef& ref) {
  v1::JobEvent event;
  v1::Artifact& artifact = *event.mutable_artifact_added();
  artifact.set_name(name_.ArtifactName(ref.path()));
  artifact.set_size_bytes(ref.size_bytes());
  artifact.set_sha256(ref.sha256());
  *artifact.mutable_create_time() = ToTimestamp(now_.wall);
  AddArtifactBytes(ref.size_bytes(), record_);
  RETURN_IF_ERROR(store_->PutArtifact(name_, artifact));
  return Append(std::move(event));
}

absl::Status JobChange::AdvanceProgress(double fraction, absl::string_view message) {
  v1::Progress& progress = *record_.mutable_job()->mutable_progress();
  progress.set_fraction(std::max(progress.fraction(), fraction));
  if (!message.empty()) progress.set_message(ToUtf8(message));
  v1::JobEvent event;
  *event.mutable_progress() = progress;
  return Append(std::move(event));
}

absl::Status JobChange::Log(v1::JobEvent::LogLine::Severity severity, absl::string_view text) {
  v1::JobEvent event;
  event.mutable_log()->set_severity(severity);
  event.mutable_log()->set_text(ToUtf8(text));
  return Append(std::move(event));
}

absl::Status JobChange::ChangeFront(const v1::ParetoFront& front) {
  v1::JobEvent event;
  *event.mutable_pareto_changed() = front;
  return Append(std::move(event));
}

absl::Status JobChange::Save() {
  if (const std::optional<LimitStrike> next = NextLimit(record_)) {
    *record_.mutable_limit_time() = ToTimestamp(next->time);
  } else {
    record_.clear_limit_time();
  }
  return store_->UpdateJob(record_);
}

}  // namespace qpruner::server
