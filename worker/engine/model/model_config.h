// Shape of a decoder-only model, as config.json describes it.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_MODEL_CONFIG_H_
#define QPRUNER_WORKER_ENGINE_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/engine/model/linear_kind.h"

namespace qpruner::engine {

// What pruning may change, for one block.
struct BlockShape {
  int64_t num_heads = 0;
  // Divides num_heads: query head h reads key/value head h / (num_heads / num_kv_heads).
  int64_t num_kv_heads = 0;
  int64_t intermediate_size = 0;

  bool operator==(const BlockShape&) const = default;
};

// How RoPE's frequencies are changed for contexts longer than the model was first trained on.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1;
  // kLlama3 only (Llama 3.1's rule, transformers' _compute_llama3_parameters).
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_max_position_embeddings = 8192;
};

struct ModelConfig {
  std::string model_type;  // "llama", "mistral", "qwen2", "qwen3"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool query_key_value_bias = false;
  bool output_bias = false;  // of o_proj
  bool mlp_bias = false;
  bool query_key_norm = false;  // Qwen3: RMSNorm over each head of q and k, before RoPE.
  std::vector<BlockShape> blocks;
  // The parsed file, so that an export keeps what this struct does not know.
  nlohmann::json source;

  int64_t num_blocks() const { return static_cast<int64_t>(blocks.size()); }
  bool uniform() const;
};

// A tensor that a checkpoint of some config must hold.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};

// [out, in] of a linear's weight.
std::vector<int64_t> LinearShape(const ModelConfig& config, const BlockShape& shape,
                                 LinearKind kind);
// True if the linear has a bias.
bool LinearHasBias(const ModelConfig& config, LinearKind kind);
// Every tensor that `config` calls for, in model order; no lm_head.weight if it is tied.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);
// Weights of all of them, and of the blocks' linears alone, without biases.
int64_t ParameterCount(const ModelConfig& config);
int64_t LinearParameterCount(const ModelConfig& config);

// Reads config.json. INVALID_ARGUMENT names the field and the rule, or the architecture that is not
// supported and those that are. A PER_LAYER pruned model of ours carries "qpruner_block_shapes".
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json);

// config.json for `config`: the source with shapes, "head_dim" and "torch_dtype" set.
nlohmann::json ModelConfigToJson(const ModelConfig& config, absl::string_view torch_dtype);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_MODEL_CONFIG_H_
