// Files are kept as long as any job lists them.
#ifndef QPRUNER_SERVER_QUEUE_ARTIFACT_REFERENCES_H_
#define QPRUNER_SERVER_QUEUE_ARTIFACT_REFERENCES_H_

#include <string>

#include "server/artifacts/artifact_store.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Removes the file if no job lists it. Logs what fails: a file that stays costs space only. Call it
// with the lock on artifact references held.
void RemoveIfUnreferenced(JobStore& store, ArtifactStore& artifacts, const std::string& sha256);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_ARTIFACT_REFERENCES_H_
