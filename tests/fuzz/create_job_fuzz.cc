// Feeds bytes to CreateJob's validation as a request. What it accepts must be a job whose file and
// whose defaults are accepted again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "google/protobuf/stubs/logging.h"
#include "qpruner/v1/job_service.pb.h"
#include "server/validation/job_validation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // protobuf prints a line for each text that is not UTF-8.
  const google::protobuf::LogSilencer silence;
  qpruner::v1::CreateJobRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  const auto job = qpruner::server::ValidateCreateJob(request, {});
  if (!job.ok()) return 0;
  *request.mutable_job()->mutable_spec() = job->job.spec();
  if (!qpruner::server::ValidateCreateJob(request, {}).ok()) std::abort();
  return 0;
}
