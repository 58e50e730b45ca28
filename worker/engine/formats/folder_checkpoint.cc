#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/foreign_file.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;
// A name and a shard for each tensor.
constexpr int64_t kMaxIndexBytes = 256 << 20;
constexpr size_t kMaxShards = 10'000;
constexpr char kSingleFile[] = "model.safetensors";
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kHead[] = "lm_head.weight";
constexpr char kIndexFile[] = "model.safetensors.index.json";

bool Exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0;
}

// Tensor name -> file name, from the index; every file name is a plain one.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  const auto invalid = [&](auto&&... rule) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a valid shard index: ", path, ": ", rule...));
  };
  ASSIGN_OR_RETURN(const std::string text, ReadForeignFile(path, kMaxIndexBytes));
  auto json = ParseStrictJsonObject(text);
  if (!json.ok()) return invalid(json.status().message());
  const auto weight_map = json->find("weight_map");
  if (weight_map == json->end() || !weight_map->is_object()) {
    return invalid("weight_map must be an object");
  }
  std::map<std::string, std::string> result;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string()) {
      return invalid("weight_map must map names to files, but not so: ", QuotedForMessage(tensor));
    }
    const auto& name = file.get_ref<const std::string&>();
    // No slash: the file lies in the folder itself. The suffix leaves out "." and "..".
    if (absl::StrContains(name, '/') || absl::StrContains(name, '\\') ||
        absl::StrContains(name, '\0') || name.size() > 255 ||
        !absl::EndsWith(name, ".safetensors")) {
      return invalid("tensor ", QuotedForMessage(tensor), " lies in ", QuotedForMessage(name),
                     "; a shard must be a plain name that ends in .safetensors");
    }
    result.emplace(tensor, name);
  }
  return result;
}

// What transformers passes over too: the head of a tied model, and a buffer of old Llama exports.
bool MayBeIgnored(const ModelConfig& config, const std::string& name) {
  return (config.tie_word_embeddings && name == kHead) ||
         absl::EndsWith(name, ".rotary_emb.inv_freq");
}

class FolderCheckpoint : public Checkpoint {
 public:
  FolderCheckpoint(const std::string& folder, ModelConfig config)
      : Checkpoint(folder, std::move(config)) {}

  // Opens the files and takes the tensors that the config calls for. `index` is empty for a single
  // file.
  absl::Status Read(const std::set<std::string>& file_names,
                    const std::map<std::string, std::string>& index) {
    for (const std::string& file : file_names) {
      auto reader = SafetensorsReader::Open(path() + "/" + file);
      if (absl::IsNotFound(reader.status())) {
        return absl::NotFoundError(absl::StrCat(
            "The model folder lacks a shard that its index names: ", path(), "/", file));
      }
      if (!reader.ok()) return reader.status();
      files_.push_back(*std::move(reader));
    }
    std::map<std::string, CheckpointTensor> found;
    // Where each tensor is. Index and shards must say the same.
    auto opened = files_.begin();
    for (const std::string& file : file_names) {
      for (const auto& [name, view] : (*opened++)->tensors()) {
        if (!index.empty()) {
          const auto entry = index.find(name);
          if (entry == index.end() || entry->second != file) {
            return absl::InvalidArgumentError(
                absl::StrCat("Shard and index disagree: ", file, " holds tensor ",
                             QuotedForMessage(name), ", which ", kIndexFile,
                             entry == index.end() ? " does not name"
                                                  : absl::StrCat(" places in ", entry->second)));
          }
        }
        found.emplace(name, CheckpointTensor{view.dtype, view.shape, view.bytes});
      }
    }
    for (const auto& [name, file] : index) {
      if (found.count(name) == 0) {
        return absl::InvalidArgumentError(absl::StrCat("Shard and index disagree: ", kIndexFile,
                                                       " places tensor ", QuotedForMessage(name),
                                                       " in ", file, ", which does not hold it"));
      }
    }

    // A tied model needs the matrix once, under either name.
    if (config().tie_word_embeddings && found.count(kEmbedding) == 0) {
      if (auto head = found.extract(kHead)) {
        head.key() = kEmbedding;
        found.insert(std::move(head));
      }
    }

    RETURN_IF_ERROR(TakeExpected(found, "config.json"));
    for (const auto& [name, tensor] : found) {
      if (!MayBeIgnored(config(), name)) {
        return absl::InvalidArgumentError(
            absl::StrCat("The model has a tensor that its config.json does not call for: ",
                         QuotedForMessage(name)));
      }
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<SafetensorsReader>> files_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenFolderCheckpoint(const std::string& folder) {
  const std::filesystem::path base(folder);
  const std::string config_path = base / "config.json";
  if (!Exists(config_path)) {
    return absl::NotFoundError(absl::StrCat("The model folder has no config.json: ", folder));
  }
  ASSIGN_OR_RETURN(const std::string config_text, ReadForeignFile(config_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(ModelConfig parsed, ParseModelConfig(config_text));
  auto checkpoint = std::make_shared<FolderCheckpoint>(folder, std::move(parsed));

  std::map<std::string, std::string> index;  // Empty: a single file.
  std::set<std::string> file_names;
  if (Exists(base / kSingleFile)) {
    file_names.insert(kSingleFile);
  } else if (Exists(base / kIndexFile)) {
    ASSIGN_OR_RETURN(index, ReadIndex(base / kIndexFile));
    for (const auto& [tensor, file] : index) file_names.insert(file);
    if (file_names.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(kIndexFile, " names no tensors: ", folder));
    }
    if (file_names.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          absl::StrCat(kIndexFile, " names more than ", kMaxShards, " files: ", folder));
    }
  } else {
    return absl::NotFoundError(absl::StrCat("The model folder has neither ", kSingleFile, " nor ",
                                            kIndexFile, ": ", folder));
  }

  RETURN_IF_ERROR(checkpoint->Read(file_names, index));
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

}  // namespace qpruner::engine
