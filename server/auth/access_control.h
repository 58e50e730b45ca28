// Decides who a caller is and whether the call's kind is open to it; writes the audit log.
#ifndef QPRUNER_SERVER_AUTH_ACCESS_CONTROL_H_
#define QPRUNER_SERVER_AUTH_ACCESS_CONTROL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "base/resource_name.h"
#include "grpcpp/server_context.h"
#include "server/auth/audit_log.h"
#include "server/auth/principal.h"
#include "server/auth/token_table.h"

namespace qpruner::server {

// Thread-safe.
class AccessControl {
 public:
  // Every caller is Role::kAnyone: for addresses that only trusted processes reach.
  static std::unique_ptr<AccessControl> Open(Clock& clock);
  // Callers need a token of the file at `path` (JSON of internal.v1.TokenFile), which is read again
  // when it changes; one that cannot be read then leaves the tokens as they are, with an error in
  // the log. INVALID_ARGUMENT, NOT_FOUND: it cannot be read now. Others than its owner must not be
  // able to write it: FAILED_PRECONDITION.
  static absl::StatusOr<std::unique_ptr<AccessControl>> FromFile(std::string path, Clock& clock);

  // A token for a worker of this server's own, named `worker`, as long as this object lives. Empty
  // with Open().
  std::string MintWorkerToken(absl::string_view worker, IdGenerator& random);

  // The caller of `method` of JobService. UNAUTHENTICATED: no token, or not a good one.
  // PERMISSION_DENIED: a worker's. Both are in the audit log, as far as their rate allows.
  // DEADLINE_EXCEEDED, CANCELLED: nobody waits for the answer any more, so the call is not begun.
  absl::StatusOr<Principal> AdmitClient(const grpc::ServerContextBase& context,
                                        absl::string_view method);
  // The caller of `method` of WorkerService. PERMISSION_DENIED: not a worker's.
  absl::StatusOr<Principal> AdmitWorker(const grpc::ServerContextBase& context,
                                        absl::string_view method);

  // One line of the audit log: who did what to which resource, from where, and how it ended.
  void Audit(const grpc::ServerContextBase& context, const Principal& caller,
             absl::string_view method, absl::string_view resource, const absl::Status& outcome);
  // The same for what the caller has no right to, as far as the rate of such lines allows. Gives
  // `refusal` back.
  absl::Status AuditRefusal(const grpc::ServerContextBase& context, const Principal& caller,
                            absl::string_view method, absl::string_view resource,
                            const absl::Status& refusal);

 private:
  AccessControl(std::string path, Clock& clock) : path_(std::move(path)), clock_(clock) {}
  absl::Status Load();
  absl::StatusOr<Principal> Authenticate(const grpc::ServerContextBase& context);
  // How many refusals are logged is bounded: their number is in the hands of those who are refused.
  struct RefusalWindow {
    absl::Duration begin = -absl::InfiniteDuration();
    int count = 0;
  };
  // Writes the refusal to the audit log, unless there were too many within this second.
  absl::Status Refuse(const AuditLog::Call& call, const absl::Status& refusal);

  // Empty: open.
  const std::string path_;
  Clock& clock_;
  AuditLog audit_;

  absl::Mutex mutex_;
  std::shared_ptr<const TokenTable> tokens_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const TokenTable> own_tokens_ ABSL_GUARDED_BY(mutex_);
  internal::v1::TokenFile own_ ABSL_GUARDED_BY(mutex_);
  // What the file looked like when it was read, and when that was last checked.
  std::string file_mark_ ABSL_GUARDED_BY(mutex_);
  absl::Duration checked_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  // Apart, so that strangers do not hide what bearers of good tokens try.
  RefusalWindow of_strangers_ ABSL_GUARDED_BY(mutex_);
  RefusalWindow of_bearers_ ABSL_GUARDED_BY(mutex_);
};

// NOT_FOUND, as if it did not exist, if the job is in a project that the caller may not use.
absl::Status CheckJobAccess(const Principal& caller, const JobName& job);
// PERMISSION_DENIED, for this reason, if the caller may not use the project that it named.
inline constexpr absl::string_view kProjectNotAllowed = "PROJECT_NOT_ALLOWED";
absl::Status CheckProjectAccess(const Principal& caller, absl::string_view project);
// PERMISSION_DENIED if the caller may not act as this worker.
absl::Status CheckWorkerAccess(const Principal& caller, absl::string_view worker);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_AUTH_ACCESS_CONTROL_H_
