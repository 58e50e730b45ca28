// Who did what, from where, and how it ended: one JSON line a call.
#ifndef QPRUNER_SERVER_AUTH_AUDIT_LOG_H_
#define QPRUNER_SERVER_AUTH_AUDIT_LOG_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "spdlog/logger.h"

namespace qpruner::server {

// Goes where the server's log goes, with a logger of its own: --log-level does not silence it.
// Thread-safe.
class AuditLog {
 public:
  // Writes to what the default logger writes to now.
  AuditLog();

  struct Call {
    absl::string_view method;
    absl::string_view caller;  // Id of the token; empty: unknown.
    std::string peer;
    absl::string_view resource;
  };
  void Write(const Call& call, const absl::Status& outcome);
  // So many calls were refused without a line.
  void WriteOmitted(int count);

 private:
  spdlog::logger logger_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_AUTH_AUDIT_LOG_H_
