#include "bench/synthetic_model.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {
namespace {

// Norms are 1; everything else is normal, scaled so that no layer grows or vanishes.
std::string RandomBytes(const ExpectedTensor& tensor) {
  at::Tensor values;
  if (tensor.shape.size() == 1) {
    values = at::ones(tensor.shape, at::kBFloat16);
  } else {
    values = (at::randn(tensor.shape) * 0.02).to(at::kBFloat16);
  }
  return BytesOf(values);
}

}  // namespace

absl::Status WriteSyntheticModel(const std::string& folder, const SyntheticModel& model,
                                 const std::string& tokenizer_folder) {
  RETURN_IF_ERROR(CreateFolders(folder));
  const nlohmann::ordered_json json = {{"architectures", {"LlamaForCausalLM"}},
                                       {"model_type", "llama"},
                                       {"vocab_size", model.vocab},
                                       {"hidden_size", model.hidden},
                                       {"intermediate_size", model.intermediate},
                                       {"num_hidden_layers", model.blocks},
                                       {"num_attention_heads", model.heads},
                                       {"num_key_value_heads", model.kv_heads},
                                       {"head_dim", model.head_dim},
                                       {"rms_norm_eps", 1e-5},
                                       {"rope_theta", 10000.0},
                                       {"max_position_embeddings", 2048},
                                       {"tie_word_embeddings", true},
                                       {"hidden_act", "silu"},
                                       {"torch_dtype", "bfloat16"}};
  ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(json.dump()));
  at::manual_seed(1);
  std::map<std::string, std::vector<ExpectedTensor>> shards;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    int64_t block = -1;
    std::string shard = "model-rest.safetensors";
    if (absl::StartsWith(tensor.name, "model.layers.")) {
      block = std::stoll(tensor.name.substr(std::string("model.layers.").size()));
      shard = absl::StrFormat("model-block-%03d.safetensors", block);
    }
    shards[shard].push_back(tensor);
  }
  nlohmann::ordered_json index;
  int64_t bytes = 0;
  for (const auto& [shard, tensors] : shards) {
    std::vector<TensorToWrite> to_write;
    for (const ExpectedTensor& tensor : tensors) {
      index["weight_map"][tensor.name] = shard;
      int64_t size = 2;
      for (const int64_t length : tensor.shape) size *= length;
      bytes += size;
      to_write.push_back(
          {tensor.name, DType::kBF16, tensor.shape, [tensor] { return RandomBytes(tensor); }});
    }
    RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/", shard), std::move(to_write),
                                     {{"format", "pt"}}));
  }
  index["metadata"]["total_size"] = bytes;
  RETURN_IF_ERROR(
      WriteFileDurably(absl::StrCat(folder, "/model.safetensors.index.json"), index.dump()));
  ASSIGN_OR_RETURN(const std::string tokenizer,
                   ReadFile(absl::StrCat(tokenizer_folder, "/tokenizer.json"), 1 << 24));
  RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(folder, "/tokenizer.json"), tokenizer));
  return WriteFileDurably(absl::StrCat(folder, "/config.json"), json.dump(1));
}

}  // namespace qpruner::engine
