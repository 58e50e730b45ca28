// Lists of jobs, trials, artifacts and workers as tables for the terminal.
#ifndef QPRUNER_CLIENT_JOB_TABLES_H_
#define QPRUNER_CLIENT_JOB_TABLES_H_

#include <string>
#include <vector>

#include "client/text_style.h"
#include "qpruner/v1/job.pb.h"
#include "qpruner/v1/job_service.pb.h"

namespace qpruner {

// A heading and rows with columns aligned; those in `right` to the right. Cells may hold escapes. A
// newline ends each line.
std::string FormatColumns(const std::vector<std::string>& heading,
                          const std::vector<std::vector<std::string>>& rows,
                          const std::vector<size_t>& right, const TextStyle& style);

std::string FormatJobs(const std::vector<v1::CompressionJob>& jobs, const TextStyle& style);
// One job in full, without its report's table.
std::string FormatJob(const v1::CompressionJob& job, const TextStyle& style);
std::string FormatTrials(const std::vector<v1::Trial>& trials, const v1::ParetoFront& front,
                         const TextStyle& style);
std::string FormatFront(const v1::ParetoFront& front, const TextStyle& style);
// With paths relative to the job.
std::string FormatArtifacts(const std::vector<v1::Artifact>& artifacts, const TextStyle& style);
// Where downloaded artifacts lie, a line for each folder of them.
std::string FormatDownloads(const std::vector<v1::Artifact>& artifacts, const std::string& folder,
                            const TextStyle& style);
std::string FormatCapabilities(const v1::ListCapabilitiesResponse& capabilities,
                               const TextStyle& style);

// The path of an artifact's name.
std::string ArtifactPath(const v1::Artifact& artifact);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JOB_TABLES_H_
