// What a CreateJobRequest must satisfy, and the defaults of what it leaves out.
//
// The bounds and defaults are those that proto/qpruner/v1/spec.proto documents field by field. All
// bad fields are reported at once.
#ifndef QPRUNER_SERVER_VALIDATION_JOB_VALIDATION_H_
#define QPRUNER_SERVER_VALIDATION_JOB_VALIDATION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/map.h"
#include "proto/status_codec.h"
#include "qpruner/v1/job_service.pb.h"

namespace qpruner::server {

// Of limits.device_memory_bytes.
inline constexpr int64_t kLeastDeviceMemoryBytes = int64_t{64} << 20;

struct JobValidationOptions {
  // file:// uris must lie in one of these folders. The default serves a single user on one machine,
  // whose own rights are the limit. None: there are no such uris.
  std::vector<std::string> model_roots = {"/"};
};

// A request that is fit to be queued.
struct NewJob {
  std::string project;
  // Empty: the queue chooses one.
  std::string job_id;
  // Empty: not idempotent.
  std::string request_id;
  // Equal for equal requests: what request_id is held against.
  std::string fingerprint;
  // Only display_name, labels, priority and spec are set; spec has its defaults filled in.
  v1::CompressionJob job;
};

// What is wrong with labels of a job, or with those that a list of jobs asks for; `field` names
// them in the request.
std::vector<FieldViolation> LabelViolations(
    const std::string& field, const google::protobuf::Map<std::string, std::string>& labels);

// INVALID_ARGUMENT with one BadRequest violation per bad field, such as "job.spec.pruning.ratio".
absl::StatusOr<NewJob> ValidateCreateJob(const v1::CreateJobRequest& request,
                                         const JobValidationOptions& options);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_VALIDATION_JOB_VALIDATION_H_
