#include "worker/engine/formats/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
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

// The bytes of a foreign file; its size is the client's fault.
absl::StatusOr<std::string> ReadForeignFile(const std::string& path, int64_t max_bytes) {
  auto content = ReadFile(path, max_bytes);
  if (absl::IsResourceExhausted(content.status()) || absl::IsFailedPrecondition(content.status())) {
    return absl::InvalidArgumentError(content.status().message());
  }
  return content;
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

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// What transformers passes over too: the head of a tied model, and a buffer of old Llama exports.
bool MayBeIgnored(const ModelConfig& config, const std::string& name) {
  return (config.tie_word_embeddings && name == kHead) ||
         absl::EndsWith(name, ".rotary_emb.inv_freq");
}

// Position of the first element whose exponent bits are all set, that is an infinity or a NaN; -1
// if there is none. `exponent` is that mask.
template <typename Bits>
int64_t FindNonFinite(absl::string_view bytes, Bits exponent) {
  // Blocks let the compiler vectorize the common case, in which nothing is found.
  constexpr size_t kBlock = 4096;
  Bits block[kBlock];
  const size_t count = bytes.size() / sizeof(Bits);
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    std::memcpy(block, bytes.data() + begin * sizeof(Bits), size * sizeof(Bits));
    unsigned found = 0;
    for (size_t i = 0; i < size; ++i) found |= (block[i] & exponent) == exponent;
    if (found == 0) continue;
    for (size_t i = 0; i < size; ++i) {
      if ((block[i] & exponent) == exponent) return static_cast<int64_t>(begin + i);
    }
  }
  return -1;
}

int64_t FindNonFinite(const TensorView& view) {
  switch (view.dtype) {
    case DType::kF32:
      return FindNonFinite<uint32_t>(view.bytes, 0x7f800000u);
    case DType::kF16:
      return FindNonFinite<uint16_t>(view.bytes, 0x7c00u);
    case DType::kBF16:
      return FindNonFinite<uint16_t>(view.bytes, 0x7f80u);
    default:
      return -1;
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& folder) {
  struct stat info;
  if (::stat(folder.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat("No such model folder: ", folder));
  }
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a folder: ", folder, "; give the folder that holds config.json"));
  }
  const std::filesystem::path base(folder);
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->folder_ = folder;
  const std::string config_path = base / "config.json";
  if (!Exists(config_path)) {
    return absl::NotFoundError(absl::StrCat("The model folder has no config.json: ", folder));
  }
  ASSIGN_OR_RETURN(const std::string config_text, ReadForeignFile(config_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(checkpoint->config_, ParseModelConfig(config_text));
  const ModelConfig& config = checkpoint->config_;

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

  for (const std::string& file : file_names) {
    auto reader = SafetensorsReader::Open(base / file);
    if (absl::IsNotFound(reader.status())) {
      return absl::NotFoundError(
          absl::StrCat("The model folder lacks a shard that its index names: ", folder, "/", file));
    }
    if (!reader.ok()) return reader.status();
    checkpoint->files_.push_back(*std::move(reader));
  }
  // Where each tensor is. Index and shards must say the same.
  auto opened = checkpoint->files_.begin();
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
      checkpoint->tensors_.emplace(name, view);
    }
  }
  for (const auto& [name, file] : index) {
    if (checkpoint->tensors_.count(name) == 0) {
      return absl::InvalidArgumentError(absl::StrCat("Shard and index disagree: ", kIndexFile,
                                                     " places tensor ", QuotedForMessage(name),
                                                     " in ", file, ", which does not hold it"));
    }
  }

  // A tied model needs the matrix once, under either name.
  if (config.tie_word_embeddings && checkpoint->tensors_.count(kEmbedding) == 0) {
    if (auto head = checkpoint->tensors_.extract(kHead)) {
      head.key() = kEmbedding;
      checkpoint->tensors_.insert(std::move(head));
    }
  }

  // What the config calls for, against what is there.
  std::set<std::string> expected_names;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    const auto found = checkpoint->tensors_.find(expected.name);
    if (found == checkpoint->tensors_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("The model lacks a tensor that its config.json calls for: ", expected.name,
                       " ", ShapeText(expected.shape)));
    }
    const TensorView& view = found->second;
    if (view.shape != expected.shape) {
      return absl::InvalidArgumentError(
          absl::StrCat("Tensor ", expected.name, " has shape ", ShapeText(view.shape),
                       ", but config.json calls for ", ShapeText(expected.shape)));
    }
    if (view.dtype != DType::kF32 && view.dtype != DType::kF16 && view.dtype != DType::kBF16) {
      return absl::InvalidArgumentError(absl::StrCat("Tensor ", expected.name, " has dtype ",
                                                     DTypeName(view.dtype),
                                                     "; weights must be F32, F16 or BF16"));
    }
    expected_names.insert(expected.name);
  }
  for (auto it = checkpoint->tensors_.begin(); it != checkpoint->tensors_.end();) {
    if (expected_names.count(it->first) != 0) {
      ++it;
    } else if (MayBeIgnored(config, it->first)) {
      it = checkpoint->tensors_.erase(it);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("The model has a tensor that its config.json does not call for: ",
                       QuotedForMessage(it->first)));
    }
  }
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

const TensorView& Checkpoint::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    std::fprintf(stderr, "Checkpoint has no tensor %s\n", name.c_str());
    std::abort();
  }
  return found->second;
}

int64_t Checkpoint::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, view] : tensors_) bytes += static_cast<int64_t>(view.bytes.size());
  return bytes;
}

absl::Status Checkpoint::CheckFinite() const {
  for (const auto& [name, view] : tensors_) {
    const int64_t position = FindNonFinite(view);
    if (position >= 0) {
      return absl::InvalidArgumentError(absl::StrCat("Tensor ", name,
                                                     " holds an infinity or NaN at element ",
                                                     position, "; all weights must be finite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace qpruner::engine
