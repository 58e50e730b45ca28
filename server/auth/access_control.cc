#include "server/auth/access_control.h"

#include <errno.h>
#include <sys/stat.h>

#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "proto/status_codec.h"
#include "server/queue/job_not_found.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr int64_t kMaxFileBytes = 16 << 20;
// A token that was taken out of the file works at most so much longer.
constexpr absl::Duration kCheckInterval = absl::Seconds(1);
constexpr int kRefusalsASecond = 20;
// A header longer than this is no token of ours.
constexpr size_t kMaxHeader = 512;

absl::Status Unauthenticated(absl::string_view message, absl::string_view reason) {
  return WithErrorInfo(absl::UnauthenticatedError(message), reason);
}

// Refuses a file that others may write.
absl::StatusOr<std::string> MarkOf(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, path);
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": others than its owner may write it; chmod go-w"));
  }
  return FileMark(info);
}

// A call may have waited for a thread longer than its caller for the answer. What it asks for would
// be done unseen, or twice: the caller tries again.
absl::Status CheckAwaited(const grpc::ServerContextBase& context) {
  if (context.deadline() <= std::chrono::system_clock::now()) {
    return absl::DeadlineExceededError("The call's deadline passed before its work began");
  }
  if (context.IsCancelled()) return absl::CancelledError("The caller went away");
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<AccessControl> AccessControl::Open(Clock& clock) {
  return std::unique_ptr<AccessControl>(new AccessControl("", clock));
}

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::FromFile(std::string path,
                                                                       Clock& clock) {
  auto access = std::unique_ptr<AccessControl>(new AccessControl(std::move(path), clock));
  absl::MutexLock lock(&access->mutex_);
  access->checked_ = clock.Monotonic();
  RETURN_IF_ERROR(access->Load());
  return access;
}

absl::Status AccessControl::Load() {
  mutex_.AssertHeld();
  ASSIGN_OR_RETURN(std::string mark, MarkOf(path_));
  if (mark == file_mark_) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path_, kMaxFileBytes));
  absl::StatusOr<TokenTable> table = TokenTable::Parse(json);
  if (!table.ok()) {
    return absl::Status(table.status().code(),
                        absl::StrCat(path_, ": ", std::string(table.status().message())));
  }
  tokens_ = std::make_shared<const TokenTable>(*std::move(table));
  file_mark_ = std::move(mark);
  return absl::OkStatus();
}

std::string AccessControl::MintWorkerToken(absl::string_view worker, IdGenerator& random) {
  if (path_.empty()) return "";
  const std::string token = MintToken(random);
  absl::MutexLock lock(&mutex_);
  internal::v1::TokenEntry& entry = *own_.add_tokens();
  entry.set_id(std::string(worker));
  entry.set_sha256(Sha256Hex(token));
  entry.set_role(internal::v1::TokenEntry::WORKER);
  entry.add_workers(std::string(worker));
  own_tokens_ = std::make_shared<const TokenTable>(TokenTable::Create(own_).value());
  return token;
}

absl::StatusOr<Principal> AccessControl::Authenticate(const grpc::ServerContextBase& context) {
  if (path_.empty()) return Principal{.id = "anyone", .role = Role::kAnyone};
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  if (begin == end) {
    return Unauthenticated("This server needs a token (authorization: Bearer TOKEN)",
                           "TOKEN_REQUIRED");
  }
  const absl::string_view header(begin->second.data(), begin->second.size());
  if (std::next(begin) != end || header.size() > kMaxHeader ||
      !absl::StartsWithIgnoreCase(header, "bearer ")) {
    return Unauthenticated("authorization must be one header \"Bearer TOKEN\"", "TOKEN_REQUIRED");
  }
  std::shared_ptr<const TokenTable> tokens, own;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Monotonic();
    if (now - checked_ >= kCheckInterval) {
      checked_ = now;
      if (absl::Status status = Load(); !status.ok()) {
        spdlog::error("tokens stay as they were: {}", std::string(status.message()));
      }
    }
    tokens = tokens_;
    own = own_tokens_;
  }
  const absl::string_view token = header.substr(7);
  absl::StatusOr<Principal> found = tokens->Find(token, clock_.Now());
  if (!found.ok() && own != nullptr && ErrorReason(found.status()) == "TOKEN_UNKNOWN") {
    found = own->Find(token, clock_.Now());
  }
  return found;
}

absl::Status AccessControl::Refuse(const AuditLog::Call& call, const absl::Status& refusal) {
  absl::MutexLock lock(&mutex_);
  RefusalWindow& window = call.caller.empty() ? of_strangers_ : of_bearers_;
  const absl::Duration now = clock_.Monotonic();
  if (now - window.begin >= absl::Seconds(1)) {
    if (window.count > kRefusalsASecond) audit_.WriteOmitted(window.count - kRefusalsASecond);
    window = {.begin = now};
  }
  if (++window.count <= kRefusalsASecond) audit_.Write(call, refusal);
  return refusal;
}

absl::Status AccessControl::AuditRefusal(const grpc::ServerContextBase& context,
                                         const Principal& caller, absl::string_view method,
                                         absl::string_view resource, const absl::Status& refusal) {
  return Refuse(
      {.method = method, .caller = caller.id, .peer = context.peer(), .resource = resource},
      refusal);
}

absl::StatusOr<Principal> AccessControl::AdmitClient(const grpc::ServerContextBase& context,
                                                     absl::string_view method) {
  absl::StatusOr<Principal> caller = Authenticate(context);
  if (!caller.ok()) {
    return Refuse({.method = method, .peer = context.peer()}, caller.status());
  }
  if (caller->role != Role::kWorker) {
    RETURN_IF_ERROR(CheckAwaited(context));
    return caller;
  }
  return AuditRefusal(
      context, *caller, method, "",
      WithErrorInfo(absl::PermissionDeniedError(absl::StrCat(
                        "The token ", caller->id, " is a worker's: it cannot call JobService")),
                    "ROLE_NOT_ALLOWED"));
}

absl::StatusOr<Principal> AccessControl::AdmitWorker(const grpc::ServerContextBase& context,
                                                     absl::string_view method) {
  absl::StatusOr<Principal> caller = Authenticate(context);
  if (!caller.ok()) {
    return Refuse({.method = method, .peer = context.peer()}, caller.status());
  }
  if (caller->role == Role::kWorker || caller->role == Role::kAnyone) {
    RETURN_IF_ERROR(CheckAwaited(context));
    return caller;
  }
  return AuditRefusal(context, *caller, method, "",
                      WithErrorInfo(absl::PermissionDeniedError(absl::StrCat(
                                        "The token ", caller->id,
                                        " is not a worker's: it cannot call WorkerService")),
                                    "ROLE_NOT_ALLOWED"));
}

void AccessControl::Audit(const grpc::ServerContextBase& context, const Principal& caller,
                          absl::string_view method, absl::string_view resource,
                          const absl::Status& outcome) {
  audit_.Write(
      {.method = method, .caller = caller.id, .peer = context.peer(), .resource = resource},
      outcome);
}

absl::Status CheckJobAccess(const Principal& caller, const JobName& job) {
  return caller.MayUseProject(job.project) ? absl::OkStatus() : JobNotFound(job);
}

absl::Status CheckProjectAccess(const Principal& caller, absl::string_view project) {
  if (caller.MayUseProject(project)) return absl::OkStatus();
  return WithErrorInfo(absl::PermissionDeniedError(absl::StrCat(
                           "The token ", caller.id, " is not one of project ", project)),
                       kProjectNotAllowed);
}

absl::Status CheckWorkerAccess(const Principal& caller, absl::string_view worker) {
  if (caller.MayBeWorker(worker)) return absl::OkStatus();
  return WithErrorInfo(
      absl::PermissionDeniedError(absl::StrCat(
          "The token ", caller.id, " does not belong to worker ", CutUtf8(worker, 100))),
      "WORKER_NOT_ALLOWED");
}

}  // namespace qpruner::server
