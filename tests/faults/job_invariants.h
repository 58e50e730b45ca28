// What must be true of every job, whatever was done to the processes that worked on it.
#ifndef QPRUNER_TESTS_FAULTS_JOB_INVARIANTS_H_
#define QPRUNER_TESTS_FAULTS_JOB_INVARIANTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "qpruner/v1/job_service.grpc.pb.h"

namespace qpruner {

// Events of a job that has ended: sequences from 1 without a gap or a repetition, one final state,
// as the last event; each trial succeeds once, and with the worker and attempt that it was leased
// to last.
absl::Status CheckEvents(const std::vector<v1::JobEvent>& events);

// That a watcher, over all interruptions, got exactly what is stored.
absl::Status CheckReplay(const std::vector<v1::JobEvent>& received,
                         const std::vector<v1::JobEvent>& stored);

// Every file that the job lists is there, with the content that its SHA-256 says.
absl::Status CheckArtifacts(v1::JobService::StubInterface& jobs, const std::string& job);

// The whole content of one artifact. DATA_LOSS, the server's or of a wrong SHA-256.
absl::Status DownloadAndCheck(v1::JobService::StubInterface& jobs, const v1::Artifact& artifact);

}  // namespace qpruner

#endif  // QPRUNER_TESTS_FAULTS_JOB_INVARIANTS_H_
