#include "worker/sources/model_files.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/model_file.h"

namespace qpruner::worker {
namespace {

constexpr size_t kMaxFiles = 1'000;
// Tokenizers are the largest: tens of megabytes.
constexpr int64_t kMaxTextFileBytes = int64_t{256} << 20;

}  // namespace

absl::Status CheckModelFiles(const std::string& what, const std::vector<ListedFile>& files,
                             int64_t max_bytes) {
  const auto fail = [&](absl::string_view why) {
    return absl::FailedPreconditionError(absl::StrCat("model.uri: ", what, " ", why));
  };
  if (files.size() > kMaxFiles) return fail(absl::StrCat("has more than ", kMaxFiles, " files"));
  const auto has = [&](auto&& is) {
    return std::any_of(files.begin(), files.end(),
                       [&](const ListedFile& file) { return is(file.name); });
  };
  if (!has([](absl::string_view name) { return name == "config.json"; })) {
    return fail("has no config.json: is it a Hugging Face model?");
  }
  if (!has(IsModelWeights)) return fail("has no weights as model*.safetensors");
  int64_t total = 0;
  for (const ListedFile& file : files) {
    if (file.size_bytes < 0 || file.size_bytes > max_bytes - total) {
      return fail(
          absl::StrCat("is larger than this worker takes (--max-model-bytes ", max_bytes, ")"));
    }
    if (!IsModelWeights(file.name) && file.size_bytes > kMaxTextFileBytes) {
      return fail(absl::StrCat("has a file larger than ", kMaxTextFileBytes,
                               " bytes that holds no "
                               "weights: ",
                               file.name));
    }
    total += file.size_bytes;
  }
  return absl::OkStatus();
}

}  // namespace qpruner::worker
