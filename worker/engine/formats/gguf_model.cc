#include "worker/engine/formats/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "worker/engine/formats/ggml_dequantize.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxInteger = int64_t{1} << 30;
constexpr int64_t kMaxBlocks = int64_t{1} << 12;
constexpr double kTwoPi = 6.283185307179586;

struct Architecture {
  const char* gguf;
  const char* model_type;
  const char* class_name;
};
constexpr Architecture kArchitectures[] = {
    {"llama", "llama", "LlamaForCausalLM"},
    {"qwen2", "qwen2", "Qwen2ForCausalLM"},
    {"qwen3", "qwen3", "Qwen3ForCausalLM"},
};
// Null if there is none.
const Architecture* FindArchitecture(absl::string_view gguf) {
  const auto* found = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                   [&](const Architecture& known) { return gguf == known.gguf; });
  return found == std::end(kArchitectures) ? nullptr : found;
}

// Names within a block. GGUF's first.
struct NamePair {
  const char* gguf;
  const char* hugging_face;
};
constexpr NamePair kBlockNames[] = {
    {"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},      {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};
constexpr NamePair kModelNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// Keys behind "<architecture>." that are read here, or that say nothing about the computation.
constexpr const char* kKnownKeys[] = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
};

absl::Status Invalid(absl::string_view what, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat(what, " ", rule));
}

// A name on one side of the table as the one on the other.
template <const char* NamePair::*kFrom, const char* NamePair::*kTo>
std::optional<std::string> Translate(absl::string_view name, absl::string_view from_prefix,
                                     absl::string_view to_prefix) {
  for (const NamePair& pair : kModelNames) {
    if (name == pair.*kFrom) return pair.*kTo;
  }
  int64_t block = -1;
  if (!absl::ConsumePrefix(&name, from_prefix)) return std::nullopt;
  const size_t dot = name.find('.');
  // Only the canonical spelling: "007" would name a block twice.
  if (dot == absl::string_view::npos || !absl::SimpleAtoi(name.substr(0, dot), &block) ||
      block < 0 || absl::StrCat(block) != name.substr(0, dot)) {
    return std::nullopt;
  }
  absl::string_view rest = name.substr(dot + 1);
  for (const absl::string_view suffix : {".weight", ".bias"}) {
    absl::string_view stem = rest;
    if (!absl::ConsumeSuffix(&stem, suffix)) continue;
    for (const NamePair& pair : kBlockNames) {
      if (stem == pair.*kFrom) return absl::StrCat(to_prefix, block, ".", pair.*kTo, suffix);
    }
  }
  return std::nullopt;
}

// The metadata of one architecture.
class Hyperparameters {
 public:
  Hyperparameters(const GgufReader& file, std::string architecture)
      : file_(file), prefix_(architecture + ".") {}

  const GgufMetadata& metadata() const { return file_.metadata(); }
  std::string Key(absl::string_view name) const { return absl::StrCat(prefix_, name); }
  bool Has(absl::string_view name) const { return metadata().Has(Key(name)); }
  absl::StatusOr<int64_t> Integer(absl::string_view name, std::optional<int64_t> absent) const {
    return metadata().Integer(Key(name), absent, 1, kMaxInteger);
  }

  // Everything else behind the prefix could change the computation.
  absl::Status CheckKeys() const {
    for (const auto& [key, value] : metadata().values()) {
      absl::string_view name = key;
      if (!absl::ConsumePrefix(&name, prefix_)) continue;
      if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), name) != std::end(kKnownKeys)) {
        continue;
      }
      if (name == "expert_count" || name == "expert_used_count") {
        if (metadata().Integer(key, {}, 0, 0).ok()) continue;
        return Invalid(absl::StrCat("key ", key), "is not supported: mixtures of experts are not");
      }
      if (name == "attention.sliding_window") {
        ASSIGN_OR_RETURN(const int64_t window, metadata().Integer(key, {}, 0, kMaxInteger));
        ASSIGN_OR_RETURN(const int64_t context, Integer("context_length", {}));
        // A window that never closes, or none, is full attention.
        if (window == 0 || window >= context) continue;
        return Invalid(absl::StrCat("key ", key),
                       absl::StrCat("is not supported below ", Key("context_length"), " (", context,
                                    "), is ", window));
      }
      if (name == "attention.causal" && metadata().Boolean(key, {}).value_or(false)) continue;
      if (name == "use_parallel_residual" && !metadata().Boolean(key, {}).value_or(true)) continue;
      return Invalid(absl::StrCat("key ", QuotedForMessage(key)),
                     absl::StrCat("is not known here, so the model could be read wrongly; known: ",
                                  absl::StrJoin(kKnownKeys, ", ")));
    }
    return absl::OkStatus();
  }

 private:
  const GgufReader& file_;
  const std::string prefix_;
};

absl::StatusOr<int64_t> HeadSize(const Hyperparameters& model, int64_t hidden,
                                 const std::vector<int64_t>& heads) {
  std::optional<int64_t> derived;
  const bool uniform = std::all_of(heads.begin(), heads.end(),
                                   [&](int64_t count) { return count == heads.front(); });
  if (uniform && hidden % heads.front() == 0) derived = hidden / heads.front();
  ASSIGN_OR_RETURN(const int64_t head_dim, model.Integer("attention.key_length", derived));
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    ASSIGN_OR_RETURN(const int64_t other, model.Integer(name, head_dim));
    if (other != head_dim) {
      return Invalid(absl::StrCat("key ", model.Key(name)),
                     absl::StrCat("is not supported unless it equals the head size (", head_dim,
                                  "), is ", other));
    }
  }
  return head_dim;
}

// The scaling whose factors rope_freqs.weight holds. The file has no other trace of it.
absl::StatusOr<RopeScaling> ScalingOfFactors(const GgufTensor& tensor, double theta,
                                             int64_t head_dim) {
  const auto what = absl::StrCat("tensor ", kRopeFactorsTensor);
  if (tensor.type != GgmlType::kF32 || tensor.shape != std::vector<int64_t>{head_dim / 2}) {
    return Invalid(what, absl::StrCat("must be F32 [", head_dim / 2, "]"));
  }
  std::vector<float> factors(static_cast<size_t>(head_dim / 2));
  DequantizeGgml(tensor.type, tensor.bytes.data(), head_dim / 2, factors.data());
  const float largest = *std::max_element(factors.begin(), factors.end());
  RopeScaling scaling;
  scaling.factor = largest;
  if (largest == 1) return scaling;
  scaling.kind = RopeScaling::Kind::kLlama3;
  // Every published model blends between wavelengths of 1/4 and 1/1 of the original positions; how
  // many these were follows from the first factor in between.
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] > 1 && factors[i] < largest)) continue;
    const double smooth = (1.0 / factors[i] - 1.0 / largest) / (1 - 1.0 / largest);
    const double wavelength =
        kTwoPi * std::pow(theta, 2 * static_cast<double>(i) / static_cast<double>(head_dim));
    scaling.original_max_position_embeddings = std::round(
        wavelength * (scaling.low_frequency_factor +
                      smooth * (scaling.high_frequency_factor - scaling.low_frequency_factor)));
    break;
  }
  const std::vector<float> expected = Llama3RopeFactors(scaling, theta, head_dim);
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(std::fabs(factors[i] - expected[i]) <= 1e-4f * expected[i])) {
      return Invalid(
          what, absl::StrCat("is not supported: its factors do not follow Llama 3's rule (low 1, "
                             "high 4); factor ",
                             i, " is ", factors[i], " where ", expected[i], " would follow"));
    }
  }
  return scaling;
}

// config.json's rope_scaling; null for none.
absl::StatusOr<Json> RopeScalingJson(const GgufReader& file, const Hyperparameters& model,
                                     double theta, int64_t head_dim) {
  const GgufMetadata& metadata = file.metadata();
  // llama.cpp takes a missing type as linear, with a factor that defaults to 1.
  ASSIGN_OR_RETURN(const absl::string_view type,
                   metadata.String(model.Key("rope.scaling.type"), "linear"));
  double factor = 1;
  for (const char* name : {"rope.scale_linear", "rope.scaling.factor"}) {
    ASSIGN_OR_RETURN(factor, metadata.Number(model.Key(name), factor, 0, 1e6));
  }
  if (type != "none" && type != "linear") {
    return Invalid(
        absl::StrCat("key ", model.Key("rope.scaling.type")),
        absl::StrCat("is not supported: ", QuotedForMessage(type), "; supported: none, linear"));
  }
  const auto tensor = file.tensors().find(kRopeFactorsTensor);
  if (tensor != file.tensors().end()) {
    if (type == "linear" && factor != 1) {
      return Invalid(absl::StrCat("tensor ", kRopeFactorsTensor),
                     "is not supported together with linear scaling");
    }
    ASSIGN_OR_RETURN(const RopeScaling scaling, ScalingOfFactors(tensor->second, theta, head_dim));
    if (scaling.kind == RopeScaling::Kind::kNone) return Json();
    return Json{{"rope_type", "llama3"},
                {"factor", scaling.factor},
                {"low_freq_factor", scaling.low_frequency_factor},
                {"high_freq_factor", scaling.high_frequency_factor},
                {"original_max_position_embeddings",
                 static_cast<int64_t>(scaling.original_max_position_embeddings)}};
  }
  if (type == "none" || factor == 1) return Json();
  return Json{{"rope_type", "linear"}, {"factor", factor}};
}

// Blocks that differ in shape are described as our own per-layer export does.
void SetShapes(const std::vector<int64_t>& heads, const std::vector<int64_t>& kv_heads,
               const std::vector<int64_t>& widths, Json& config) {
  config["num_attention_heads"] = *std::max_element(heads.begin(), heads.end());
  config["num_key_value_heads"] = *std::max_element(kv_heads.begin(), kv_heads.end());
  config["intermediate_size"] = *std::max_element(widths.begin(), widths.end());
  Json shapes = Json::array();
  bool uniform = true;
  for (size_t i = 0; i < heads.size(); ++i) {
    shapes.push_back({{"num_attention_heads", heads[i]},
                      {"num_key_value_heads", kv_heads[i]},
                      {"intermediate_size", widths[i]}});
    uniform = uniform && shapes[i] == shapes[0];
  }
  if (uniform) return;
  // The outer head counts must divide too; each block has its own.
  config["num_key_value_heads"] = 1;
  config["qpruner_block_shapes"] = std::move(shapes);
}

}  // namespace

std::optional<std::string> HuggingFaceNameOf(absl::string_view gguf_name) {
  return Translate<&NamePair::gguf, &NamePair::hugging_face>(gguf_name, "blk.", "model.layers.");
}

std::optional<std::string> GgufNameOf(absl::string_view hugging_face_name) {
  return Translate<&NamePair::hugging_face, &NamePair::gguf>(hugging_face_name, "model.layers.",
                                                             "blk.");
}

absl::StatusOr<std::string> GgufArchitectureOf(const ModelConfig& config) {
  const bool factors = config.rope_scaling.kind == RopeScaling::Kind::kLlama3;
  if (config.model_type == "mistral") return "llama";
  if (config.model_type == "qwen2") {
    // llama.cpp takes the hidden size for Qwen2's heads together (so pruned ones do not load) and
    // has no RoPE factors for it. Its llama has both, and biases where there are some.
    const bool square =
        std::all_of(config.blocks.begin(), config.blocks.end(), [&](const BlockShape& shape) {
          return shape.num_heads * config.head_dim == config.hidden_size;
        });
    return square && !factors ? "qwen2" : "llama";
  }
  if (config.model_type == "qwen3" && config.query_key_value_bias) {
    return absl::InvalidArgumentError("llama.cpp has no biases for Qwen3 (attention_bias)");
  }
  if (config.model_type == "qwen3" && factors) {
    return absl::InvalidArgumentError("llama.cpp has no RoPE scaling llama3 for Qwen3");
  }
  return config.model_type;
}

bool HasReorderedRows(absl::string_view architecture, absl::string_view hugging_face_name) {
  return architecture == "llama" && (absl::StrContains(hugging_face_name, ".q_proj.") ||
                                     absl::StrContains(hugging_face_name, ".k_proj."));
}

std::vector<float> Llama3RopeFactors(const RopeScaling& scaling, double rope_theta,
                                     int64_t head_dim) {
  std::vector<float> factors;
  const double low_wavelength =
      scaling.original_max_position_embeddings / scaling.low_frequency_factor;
  const double high_wavelength =
      scaling.original_max_position_embeddings / scaling.high_frequency_factor;
  for (int64_t i = 0; i < head_dim; i += 2) {
    const double frequency =
        std::pow(rope_theta, -static_cast<double>(i) / static_cast<double>(head_dim));
    const double wavelength = kTwoPi / frequency;
    double factor = 1;
    if (wavelength > low_wavelength) {
      factor = scaling.factor;
    } else if (wavelength >= high_wavelength) {
      const double smooth =
          (scaling.original_max_position_embeddings / wavelength - scaling.low_frequency_factor) /
          (scaling.high_frequency_factor - scaling.low_frequency_factor);
      factor = 1 / ((1 - smooth) / scaling.factor + smooth);
    }
    factors.push_back(static_cast<float>(factor));
  }
  return factors;
}

absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufReader& file) {
  const GgufMetadata& metadata = file.metadata();
  ASSIGN_OR_RETURN(const absl::string_view name, metadata.String("general.architecture", {}));
  const Architecture* architecture = FindArchitecture(name);
  if (architecture == nullptr) {
    return Invalid("key general.architecture",
                   absl::StrCat("is not supported: ", QuotedForMessage(name),
                                "; supported: llama (Mistral too), qwen2, qwen3"));
  }
  ASSIGN_OR_RETURN(const int64_t parts, metadata.Integer("split.count", 1, 0, kMaxInteger));
  if (parts > 1) {
    return Invalid("key split.count",
                   "is not supported above 1: join the parts with llama-gguf-split --merge");
  }
  const Hyperparameters model(file, architecture->gguf);
  RETURN_IF_ERROR(model.CheckKeys());

  ASSIGN_OR_RETURN(const int64_t blocks,
                   metadata.Integer(model.Key("block_count"), {}, 1, kMaxBlocks));
  ASSIGN_OR_RETURN(const int64_t hidden, model.Integer("embedding_length", {}));
  ASSIGN_OR_RETURN(const int64_t positions, model.Integer("context_length", {}));
  const auto per_block = [&](const char* key) {
    return metadata.IntegerPerBlock(model.Key(key), blocks, 1, kMaxInteger);
  };
  ASSIGN_OR_RETURN(const std::vector<int64_t> heads, per_block("attention.head_count"));
  std::vector<int64_t> kv_heads = heads;
  if (model.Has("attention.head_count_kv")) {
    ASSIGN_OR_RETURN(kv_heads, per_block("attention.head_count_kv"));
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> widths, per_block("feed_forward_length"));
  ASSIGN_OR_RETURN(const int64_t head_dim, HeadSize(model, hidden, heads));
  ASSIGN_OR_RETURN(const double epsilon,
                   metadata.Number(model.Key("attention.layer_norm_rms_epsilon"), {}, 0, 1));
  ASSIGN_OR_RETURN(const double theta,
                   metadata.Number(model.Key("rope.freq_base"), 10000.0, 0, 1e12));
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end() || embedding->second.shape.size() != 2) {
    return Invalid("tensor token_embd.weight", "is missing, or not a matrix");
  }

  // Llama has all biases of attention or none: see GgufArchitectureOf.
  if (name == "llama" && file.tensors().count("blk.0.attn_q.bias") != 0 &&
      file.tensors().count("blk.0.attn_output.bias") == 0) {
    architecture = FindArchitecture("qwen2");
  }
  Json config = {{"model_type", architecture->model_type},
                 {"architectures", Json::array({architecture->class_name})},
                 {"hidden_act", "silu"},
                 {"vocab_size", embedding->second.shape[0]},
                 {"hidden_size", hidden},
                 {"head_dim", head_dim},
                 {"num_hidden_layers", blocks},
                 {"max_position_embeddings", positions},
                 {"rms_norm_eps", epsilon},
                 {"rope_theta", theta},
                 {"tie_word_embeddings", file.tensors().count("output.weight") == 0}};
  SetShapes(heads, kv_heads, widths, config);
  if (absl::string_view(architecture->model_type) != "qwen2") {
    config["attention_bias"] = file.tensors().count("blk.0.attn_q.bias") != 0;
  }
  if (absl::string_view(architecture->model_type) == "llama") {
    config["mlp_bias"] = file.tensors().count("blk.0.ffn_gate.bias") != 0;
  }
  ASSIGN_OR_RETURN(Json scaling, RopeScalingJson(file, model, theta, head_dim));
  if (!scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  for (const auto& [key, field] : {std::pair("tokenizer.ggml.bos_token_id", "bos_token_id"),
                                   std::pair("tokenizer.ggml.eos_token_id", "eos_token_id"),
                                   std::pair("tokenizer.ggml.padding_token_id", "pad_token_id")}) {
    if (!metadata.Has(key)) continue;
    ASSIGN_OR_RETURN(config[field], metadata.Integer(key, {}, 0, kMaxInteger));
  }
  auto parsed = ParseModelConfig(config.dump());
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("as ", absl::string_view(parsed.status().message())));
  }
  return parsed;
}

}  // namespace qpruner::engine
