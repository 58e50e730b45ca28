#include "worker/sources/file_roots.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "proto/task_uris.h"

namespace qpruner::worker {
namespace {

namespace fs = std::filesystem;

// Part by part.
bool IsBelow(const fs::path& path, const fs::path& root) {
  auto part = path.begin();
  for (const fs::path& root_part : root) {
    if (root_part.empty()) continue;  // A trailing slash.
    if (part == path.end() || *part != root_part) return false;
    ++part;
  }
  return true;
}

}  // namespace

bool FileRoots::Allows(const std::string& path) const {
  std::error_code error;
  const fs::path resolved = fs::weakly_canonical(path, error);
  if (error) return false;
  return std::any_of(roots_.begin(), roots_.end(), [&](const std::string& root) {
    std::error_code root_error;
    const fs::path resolved_root = fs::weakly_canonical(root, root_error);
    return !root_error && IsBelow(resolved, resolved_root);
  });
}

absl::Status FileRoots::CheckUri(const std::string& field, const std::string& uri) const {
  if (!absl::StartsWith(uri, "file:///")) return absl::OkStatus();
  const std::string path = uri.substr(7);
  const auto refuse = [&](const std::string& which) {
    return absl::FailedPreconditionError(
        absl::StrCat(field, ": leads outside of the folders that this worker reads (--model-root ",
                     roots_.empty() ? "none" : absl::StrJoin(roots_, ", "), "): ", which));
  };
  if (!Allows(path)) return refuse(path);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (!Allows(entry.path().string())) return refuse(entry.path().string());
  }
  return absl::OkStatus();
}

absl::Status FileRoots::Check(const v1::CompressionSpec& spec) const {
  for (const NamedUri& named : UrisOf(spec)) RETURN_IF_ERROR(CheckUri(named.field, named.uri));
  return absl::OkStatus();
}

}  // namespace qpruner::worker
