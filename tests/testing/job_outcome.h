// What a job brought, for comparing runs.
#ifndef QPRUNER_TESTS_TESTING_JOB_OUTCOME_H_
#define QPRUNER_TESTS_TESTING_JOB_OUTCOME_H_

#include <string>

#include "absl/status/statusor.h"
#include "qpruner/v1/job_service.grpc.pb.h"

namespace qpruner {

// Trials with their measurements, front, report, and SHA-256 of every artifact, without what may
// differ between equal runs (times, names, attempts). Errors: those of the calls.
absl::StatusOr<std::string> JobOutcome(v1::JobService::StubInterface& jobs,
                                       const std::string& name);

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_JOB_OUTCOME_H_
