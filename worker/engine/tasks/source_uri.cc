#include "worker/engine/tasks/source_uri.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
constexpr char kDefaultText[] = "builtin://tinystories";

bool IsBuiltinName(absl::string_view name) {
  if (name.empty()) return false;
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') return false;
  }
  return true;
}

// The path that `uri` names; builtin names are put between `before` and `after`.
absl::StatusOr<std::string> Locate(absl::string_view field, absl::string_view uri,
                                   absl::string_view before, absl::string_view after) {
  absl::string_view rest = uri;
  if (absl::ConsumePrefix(&rest, "file://")) {
    if (!absl::StartsWith(rest, "/")) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, ": a file URI needs an absolute path, file:///folder/name; is \"", uri, "\""));
    }
    return std::string(rest);
  }
  if (absl::ConsumePrefix(&rest, "builtin://") && IsBuiltinName(rest)) {
    return absl::StrCat(before, rest, after);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": must be file:///absolute/path or builtin://name, is \"", uri, "\""));
}

// What the agent has put into `folder`.
absl::StatusOr<std::string> FindFetchedModel(const std::string& uri, const std::string& folder) {
  std::error_code ignored;
  if (fs::is_regular_file(folder + "/config.json", ignored)) return folder;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (absl::EndsWithIgnoreCase(entry.path().string(), ".gguf")) return entry.path().string();
  }
  return absl::NotFoundError(absl::StrCat(
      "model.uri: the worker has brought neither a config.json nor a .gguf file of ", uri));
}

}  // namespace

absl::StatusOr<std::string> ResolveModel(const std::string& uri, const std::string& builtin_dir,
                                         const std::string& input_dir) {
  for (const char* scheme : {"hf://", "s3://", "artifact://"}) {
    if (absl::StartsWith(uri, scheme)) return FindFetchedModel(uri, input_dir + "/source");
  }
  auto path = Locate("model.uri", uri, absl::StrCat(builtin_dir, "/models/"), "");
  std::error_code ignored;
  if (path.ok() && !fs::is_directory(*path, ignored) &&
      !(absl::EndsWithIgnoreCase(*path, ".gguf") && fs::is_regular_file(*path, ignored))) {
    return absl::NotFoundError(absl::StrCat(
        "model.uri: no such folder or .gguf file on this worker: ", *path, " (", uri, ")"));
  }
  return path;
}

absl::StatusOr<std::string> ResolveText(const std::string& uri, const std::string& builtin_dir) {
  auto path = Locate("dataset.uri", uri.empty() ? kDefaultText : uri,
                     absl::StrCat(builtin_dir, "/corpus/"), ".txt");
  std::error_code ignored;
  if (path.ok() && !fs::is_regular_file(*path, ignored)) {
    return absl::NotFoundError(
        absl::StrCat("dataset.uri: no such file on this worker: ", *path, " (", uri, ")"));
  }
  return path;
}

absl::StatusOr<std::string> ResolveFile(const std::string& uri) {
  if (!absl::StartsWith(uri, "file:///")) {
    return absl::InvalidArgumentError(
        absl::StrCat("uri: must be file:///absolute/path, is \"", uri, "\""));
  }
  std::string path = uri.substr(7);
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) {
    return absl::NotFoundError(
        absl::StrCat("uri: no such file on this worker: ", path, " (", uri, ")"));
  }
  return path;
}

}  // namespace qpruner::engine
