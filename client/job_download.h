// A job's files into a local folder.
#ifndef QPRUNER_CLIENT_JOB_DOWNLOAD_H_
#define QPRUNER_CLIENT_JOB_DOWNLOAD_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cancellation.h"
#include "client/exit_code.h"
#include "client/session.h"
#include "client/signal_queue.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner {

// Downloads artifacts into `folder`, showing how far it is on a terminal. Errors: as
// JobClient::DownloadArtifact; DATA_LOSS for a name that leads out of the folder.
absl::Status Download(Session& session, const std::vector<v1::Artifact>& artifacts,
                      const std::string& folder, Cancellation* cancellation = nullptr);

// Downloads the result of a job, or with `all` also what its stages handed to each other, and says
// where it lies. A signal of `signals` ends it.
ExitCode DownloadResult(Session& session, const std::string& job, const std::string& folder,
                        bool all, SignalQueue& signals);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JOB_DOWNLOAD_H_
