// The file of projects' weights and quotas, read again when it changes.
#ifndef QPRUNER_SERVER_QUEUE_QUOTA_FILE_H_
#define QPRUNER_SERVER_QUEUE_QUOTA_FILE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "server/queue/project_policies.h"

namespace qpruner::server {

// Used by one thread at a time.
class QuotaFile {
 public:
  // INVALID_ARGUMENT: it is not there, or not JSON of internal.v1.QuotaFile.
  static absl::StatusOr<std::unique_ptr<QuotaFile>> Open(std::string path, Clock& clock);

  // What it says, as far as it was good.
  const ProjectPolicies& policies() const { return policies_; }

  // Looks, at most once a second, whether the file was changed, and reads it then. True: it says
  // something else now. A file that is bad is told of in the log, once, and changes nothing.
  bool ReadIfChanged();

 private:
  QuotaFile(std::string path, Clock& clock) : path_(std::move(path)), clock_(clock) {}
  absl::Status Read();

  const std::string path_;
  Clock& clock_;
  ProjectPolicies policies_;
  // What the file looked like when it was read, and when it was last looked at.
  std::string mark_;
  absl::Duration looked_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_QUOTA_FILE_H_
