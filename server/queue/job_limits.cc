#include "server/queue/job_limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/status_codec.h"
#include "server/queue/job_change.h"

namespace qpruner::server {

using internal::v1::JobRecord;

std::optional<LimitStrike> NextLimit(const JobRecord& record) {
  const v1::CompressionJob& job = record.job();
  const v1::Limits& limits = job.spec().limits();
  std::optional<LimitStrike> next;
  const auto at = [&](JobLimit limit, absl::Time time) {
    if (!next || time < next->time) next = {limit, time};
  };
  if (job.state() == v1::CompressionJob::PENDING) {
    if (limits.has_max_queue_seconds() && record.has_waiting_since()) {
      at(JobLimit::kQueueTime,
         FromTimestamp(record.waiting_since()) + absl::Seconds(limits.max_queue_seconds()));
    }
    return next;
  }
  if (job.state() != v1::CompressionJob::RUNNING) return next;
  if (limits.has_max_run_seconds() && record.has_running_since()) {
    at(JobLimit::kRunTime,
       FromTimestamp(record.running_since()) + absl::Seconds(limits.max_run_seconds()));
  }
  if (limits.has_max_device_seconds() && record.has_device_seconds_time()) {
    const absl::Duration left =
        absl::Seconds(static_cast<double>(limits.max_device_seconds()) - job.device_seconds());
    const absl::Time as_of = FromTimestamp(record.device_seconds_time());
    if (left <= absl::ZeroDuration()) {
      at(JobLimit::kDeviceTime, as_of);
    } else if (record.leased_task_count() > 0) {
      at(JobLimit::kDeviceTime, as_of + left / record.leased_task_count());
    }
  }
  if (limits.has_max_search_seconds() && record.has_searching_since() &&
      !record.search_time_over()) {
    at(JobLimit::kSearchTime,
       FromTimestamp(record.searching_since()) + absl::Seconds(limits.max_search_seconds()));
  }
  return next;
}

absl::Status LimitError(JobLimit limit, const v1::Limits& limits) {
  const auto error = [](absl::string_view message, absl::string_view field, int64_t seconds) {
    return WithErrorInfo(
        absl::DeadlineExceededError(absl::StrCat(message, " limits.", field, " (", seconds, " s)")),
        "LIMIT_EXCEEDED",
        {{"limit", absl::StrCat("limits.", field)}, {"seconds", absl::StrCat(seconds)}});
  };
  switch (limit) {
    case JobLimit::kQueueTime:
      return error("No worker has started the job within", "max_queue_seconds",
                   limits.max_queue_seconds());
    case JobLimit::kRunTime:
      return error("The job was not done within", "max_run_seconds", limits.max_run_seconds());
    case JobLimit::kDeviceTime:
      return error("The job's tasks have used up", "max_device_seconds",
                   limits.max_device_seconds());
    case JobLimit::kSearchTime:
      break;
  }
  return absl::InternalError("The search's limit fails no job");
}

void CountLeases(JobRecord& record, int change, absl::Time now) {
  v1::CompressionJob& job = *record.mutable_job();
  if (record.has_device_seconds_time() && record.leased_task_count() > 0) {
    // A clock that was set back takes nothing away.
    const absl::Duration passed =
        std::max(absl::ZeroDuration(), now - FromTimestamp(record.device_seconds_time()));
    job.set_device_seconds(job.device_seconds() +
                           record.leased_task_count() * absl::ToDoubleSeconds(passed));
  }
  *record.mutable_device_seconds_time() = ToTimestamp(now);
  // Leases that an older version granted were not counted.
  record.set_leased_task_count(std::max(0, record.leased_task_count() + change));
}

void MoveClocks(JobRecord& record, absl::Duration by) {
  const auto move = [&](google::protobuf::Timestamp& time) {
    time = ToTimestamp(FromTimestamp(time) + by);
  };
  if (record.has_waiting_since()) move(*record.mutable_waiting_since());
  if (record.has_running_since()) move(*record.mutable_running_since());
  if (record.has_searching_since()) move(*record.mutable_searching_since());
}

}  // namespace qpruner::server
