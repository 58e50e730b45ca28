#include "worker/engine/export/model_folder.h"

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "worker/engine/formats/tokenizer_files.h"

namespace qpruner::engine {

absl::Status WriteModelConfig(const std::string& folder, const nlohmann::json& config) {
  return WriteFileDurably(absl::StrCat(folder, "/config.json"), absl::StrCat(config.dump(2), "\n"));
}

absl::StatusOr<std::vector<std::string>> WriteTokenizerFiles(const std::string& from,
                                                             const std::string& folder) {
  std::vector<std::string> written;
  if (from.empty()) return written;
  ASSIGN_OR_RETURN(const TokenizerFiles files, ReadTokenizerFiles(from));
  for (const auto& [name, content] : files) {
    RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(folder, "/", name), content));
    written.push_back(name);
  }
  return written;
}

}  // namespace qpruner::engine
