#include "worker/engine/formats/tokenizer_files.h"

#include <array>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/foreign_file.h"
#include "worker/engine/formats/gguf_reader.h"
#include "worker/engine/formats/gguf_tokenizer.h"

namespace qpruner::engine {
namespace {

constexpr char kTokenizer[] = "tokenizer.json";
constexpr std::array<const char*, 9> kFiles = {
    "added_tokens.json", "chat_template.jinja",     "generation_config.json",
    "merges.txt",        "special_tokens_map.json", kTokenizer,
    "tokenizer.model",   "tokenizer_config.json",   "vocab.json"};
// Real ones take up to about 35 MB.
constexpr int64_t kMaxFileBytes = int64_t{256} << 20;

}  // namespace

absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::string& model_path) {
  std::error_code ignored;
  if (absl::EndsWithIgnoreCase(model_path, ".gguf") &&
      !std::filesystem::is_directory(model_path, ignored)) {
    ASSIGN_OR_RETURN(const auto file, GgufReader::Open(model_path));
    auto files = TokenizerFilesFromGguf(file->metadata());
    if (!files.ok()) {
      return absl::Status(files.status().code(),
                          absl::StrCat("The tokenizer of GGUF file ", model_path, ": ",
                                       absl::string_view(files.status().message())));
    }
    return files;
  }
  TokenizerFiles files;
  for (const char* name : kFiles) {
    auto content = ReadForeignFile(std::filesystem::path(model_path) / name, kMaxFileBytes);
    if (absl::IsNotFound(content.status())) continue;
    if (!content.ok()) return content.status();
    files.emplace(name, *std::move(content));
  }
  if (files.count(kTokenizer) == 0) {
    return absl::NotFoundError(
        absl::StrCat("The model folder has no tokenizer.json: ", model_path));
  }
  return files;
}

}  // namespace qpruner::engine
