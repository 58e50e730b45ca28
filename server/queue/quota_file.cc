#include "server/queue/quota_file.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr int64_t kMaxFileBytes = 4 << 20;
constexpr absl::Duration kLookInterval = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<QuotaFile>> QuotaFile::Open(std::string path, Clock& clock) {
  std::unique_ptr<QuotaFile> file(new QuotaFile(std::move(path), clock));
  file->looked_ = clock.Monotonic();
  file->mark_ = FileMark(file->path_).value_or("");
  const absl::Status read = file->Read();
  if (!read.ok()) return absl::InvalidArgumentError(read.message());
  return file;
}

absl::Status QuotaFile::Read() {
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path_, kMaxFileBytes));
  absl::StatusOr<ProjectPolicies> policies = ParseQuotaFile(json);
  if (!policies.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", absl::string_view(policies.status().message())));
  }
  policies_ = *std::move(policies);
  return absl::OkStatus();
}

bool QuotaFile::ReadIfChanged() {
  const absl::Duration now = clock_.Monotonic();
  if (now - looked_ < kLookInterval) return false;
  looked_ = now;
  // Taken before the file is read: what is written meanwhile shows at the next look.
  std::string mark = FileMark(path_).value_or("");
  if (mark == mark_) return false;
  mark_ = std::move(mark);
  if (const absl::Status read = Read(); !read.ok()) {
    spdlog::error("quotas stay as they were: {}", std::string(read.message()));
    return false;
  }
  spdlog::info("quotas were read again from {}: {} projects are named", path_,
               policies_.projects.size());
  return true;
}

}  // namespace qpruner::server
