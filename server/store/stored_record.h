// How records and times lie in the tables of any SQL store.
#ifndef QPRUNER_SERVER_STORE_STORED_RECORD_H_
#define QPRUNER_SERVER_STORE_STORED_RECORD_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "google/protobuf/timestamp.pb.h"
#include "proto/task_uris.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner::server {

// More labels than a job can have match nothing.
inline constexpr size_t kMaxFilterLabels = 32;

// Nanoseconds since 1970; an unset timestamp is 0, times beyond the range (1677 to 2262) are its
// ends.
inline int64_t ToNanoseconds(const google::protobuf::Timestamp& time) {
  constexpr int64_t kPerSecond = 1'000'000'000;
  constexpr int64_t kMaxSeconds = std::numeric_limits<int64_t>::max() / kPerSecond - 1;
  if (time.seconds() > kMaxSeconds) return std::numeric_limits<int64_t>::max();
  if (time.seconds() < -kMaxSeconds) return std::numeric_limits<int64_t>::min();
  return time.seconds() * kPerSecond + time.nanos();
}

inline int64_t ToNanoseconds(absl::Time time) {
  if (time >= absl::FromUnixNanos(std::numeric_limits<int64_t>::max())) {
    return std::numeric_limits<int64_t>::max();
  }
  if (time <= absl::FromUnixNanos(std::numeric_limits<int64_t>::min())) {
    return std::numeric_limits<int64_t>::min();
  }
  return absl::ToUnixNanos(time);
}

// Tasks are queued by what they need of a worker, so that those which no worker can do now hold up
// no others: memory in whole gibibytes, rounded down, and ways to models (a bit for each scheme).
// Stored in the column memory_class, whose rows may be of versions that knew only memory.
inline int NeedClass(const internal::v1::TaskRecord& task) {
  constexpr int kMemoryBits = 21;
  constexpr int64_t kLargest = (1 << kMemoryBits) - 1;
  int need = static_cast<int>(std::clamp<int64_t>(
      task.spec().spec().limits().min_device_memory_bytes() >> 30, 0, kLargest));
  for (const std::string& uri : UrisReadByWorker(task.spec())) {
    const int scheme = absl::StartsWith(uri, "file://") ? 0
                       : absl::StartsWith(uri, "hf://") ? 1
                                                        : 2;
    need |= 1 << (kMemoryBits + scheme);
  }
  return need;
}

inline absl::Status RecordDamaged(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("Job store is damaged: a stored ", what,
                                          " cannot be read. Restore it from a backup"));
}

// DATA_LOSS: the bytes are no such message.
template <typename Message>
absl::Status ParseRecord(absl::string_view bytes, Message& message) {
  if (message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::OkStatus();
  }
  return RecordDamaged(Message::descriptor()->full_name());
}

// The same, of a record that must be the job's of this name: one without it could not be written
// back.
inline absl::Status ParseJob(absl::string_view bytes, const JobName& name,
                             internal::v1::JobRecord& record) {
  const absl::Status parsed = ParseRecord(bytes, record);
  if (!parsed.ok() || record.job().name() == name.ToString()) return parsed;
  return RecordDamaged(internal::v1::JobRecord::descriptor()->full_name());
}

// The same, of a task's: it names its job.
inline absl::Status ParseTask(absl::string_view bytes, internal::v1::TaskRecord& task) {
  const absl::Status parsed = ParseRecord(bytes, task);
  if (!parsed.ok() || JobName::Parse(task.job()).ok()) return parsed;
  return RecordDamaged(internal::v1::TaskRecord::descriptor()->full_name());
}

// What clients see of a JobRecord's bytes. Its results of stages, which may be many times larger,
// are passed over. DATA_LOSS.
absl::Status ParseShownJob(absl::string_view record, v1::CompressionJob& job);

inline absl::Status JobNotStored(const JobName& name) {
  return absl::NotFoundError(absl::StrCat("Job not found: ", name.ToString()));
}

inline absl::Status TaskNotStored(const JobName& job, const std::string& task_id) {
  return absl::NotFoundError(absl::StrCat("Task not found: \"", task_id, "\" of ", job.ToString()));
}

inline absl::Status CheckRequestProject(const std::string& project, const JobName& job) {
  if (job.project == project) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Request and job must be of one project, are ", project, " and ", job.project));
}

// The path of an artifact that is `job`'s and has a SHA-256. INVALID_ARGUMENT.
inline absl::StatusOr<std::string> ArtifactPathIn(const JobName& job,
                                                  const v1::Artifact& artifact) {
  const absl::StatusOr<ArtifactName> name = ArtifactName::Parse(artifact.name());
  if (!name.ok()) return name.status();
  if (name->job.ToString() != job.ToString()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Artifact is not of job ", job.ToString(), ": ", artifact.name()));
  }
  if (!IsSha256Hex(artifact.sha256())) {
    return absl::InvalidArgumentError(
        absl::StrCat("Artifact's sha256 must be 64 lower-case hexadecimal digits, is \"",
                     artifact.sha256(), "\": ", artifact.name()));
  }
  return name->path;
}

// The next event of a job must follow its last one.
inline absl::Status CheckEventSequence(const JobName& job, int64_t last, int64_t next) {
  if (next == last + 1) return absl::OkStatus();
  const std::string message =
      absl::StrCat("Next event of ", job.ToString(), " must be ", last + 1, ", is ", next);
  return next <= last ? absl::AlreadyExistsError(message) : absl::FailedPreconditionError(message);
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_STORED_RECORD_H_
