#include "worker/engine/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

// Far above any model of this family; they keep every product of sizes within int64.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxHidden = int64_t{1} << 20;
constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
constexpr int64_t kMaxHeads = int64_t{1} << 14;
constexpr int64_t kMaxHeadDim = int64_t{1} << 12;
constexpr int64_t kMaxBlocks = int64_t{1} << 12;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

struct Family {
  const char* model_type;
  const char* architecture;
};
constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM"},
    {"mistral", "MistralForCausalLM"},
    {"qwen2", "Qwen2ForCausalLM"},
    {"qwen3", "Qwen3ForCausalLM"},
};

absl::Status Invalid(absl::string_view field, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", field, " ", rule));
}

// Typed access to the fields of one object. A field that is null counts as absent, as in
// transformers.
class Fields {
 public:
  explicit Fields(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  const Json* Find(const char* name) const {
    auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  absl::StatusOr<int64_t> Integer(const char* name, std::optional<int64_t> absent, int64_t min,
                                  int64_t max) const {
    const Json* value = Find(name);
    if (value == nullptr) {
      if (absent) return *absent;
      return Invalid(Name(name), "is missing");
    }
    const bool fits =
        value->is_number_unsigned()
            ? value->get<uint64_t>() <= static_cast<uint64_t>(max) && value->get<int64_t>() >= min
            : value->is_number_integer() && value->get<int64_t>() >= min &&
                  value->get<int64_t>() <= max;
    if (!fits) {
      return Invalid(Name(name), absl::StrCat("must be an integer from ", min, " to ", max, ": ",
                                              Show(*value)));
    }
    return value->get<int64_t>();
  }

  // Any finite number above `above` and at most `max`.
  absl::StatusOr<double> Number(const char* name, std::optional<double> absent, double above,
                                double max) const {
    const Json* value = Find(name);
    if (value == nullptr) {
      if (absent) return *absent;
      return Invalid(Name(name), "is missing");
    }
    if (!value->is_number() || !(value->get<double>() > above) || !(value->get<double>() <= max)) {
      return Invalid(Name(name), absl::StrCat("must be a number above ", above, " and at most ",
                                              max, ": ", Show(*value)));
    }
    return value->get<double>();
  }

  absl::StatusOr<bool> Boolean(const char* name, bool absent) const {
    const Json* value = Find(name);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) {
      return Invalid(Name(name), absl::StrCat("must be true or false: ", Show(*value)));
    }
    return value->get<bool>();
  }

  absl::StatusOr<std::string> String(const char* name, std::optional<std::string> absent) const {
    const Json* value = Find(name);
    if (value == nullptr) {
      if (absent) return *absent;
      return Invalid(Name(name), "is missing");
    }
    if (!value->is_string()) {
      return Invalid(Name(name), absl::StrCat("must be a string: ", Show(*value)));
    }
    return value->get<std::string>();
  }

  std::string Name(const char* name) const { return absl::StrCat(prefix_, name); }

  // The value, cut to a length that fits a message.
  static std::string Show(const Json& value) {
    std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
    if (text.size() > 60) text = absl::StrCat(text.substr(0, 57), "...");
    return text;
  }

 private:
  const Json& object_;
  std::string prefix_;
};

absl::Status CheckFamily(const Fields& fields, ModelConfig& config) {
  const auto supported = [] {
    return absl::StrJoin(kFamilies, ", ", [](std::string* out, const Family& family) {
      absl::StrAppend(out, family.model_type, " (", family.architecture, ")");
    });
  };
  ASSIGN_OR_RETURN(config.model_type, fields.String("model_type", std::nullopt));
  const Family* found = nullptr;
  for (const Family& family : kFamilies) {
    if (config.model_type == family.model_type) found = &family;
  }
  if (found == nullptr) {
    return Invalid("model_type", absl::StrCat("is not supported: \"", config.model_type,
                                              "\"; supported: ", supported()));
  }
  const Json* architectures = fields.Find("architectures");
  if (architectures != nullptr &&
      *architectures != Json::array({std::string(found->architecture)})) {
    return Invalid("architectures",
                   absl::StrCat("is not supported: ", Fields::Show(*architectures), "; for ",
                                config.model_type, " it must be [\"", found->architecture, "\"]"));
  }
  return absl::OkStatus();
}

// RoPE in both spellings: rope_theta with rope_scaling, or rope_parameters (transformers 5).
absl::Status ReadRope(const Fields& fields, ModelConfig& config) {
  const char* name = "rope_scaling";
  const Json* scaling = fields.Find(name);
  if (scaling == nullptr || scaling->empty()) {
    // transformers takes rope_scaling where both are there.
    name = "rope_parameters";
    scaling = fields.Find(name);
  }
  ASSIGN_OR_RETURN(config.rope_theta, fields.Number("rope_theta", 10000.0, 0, 1e12));
  if (scaling == nullptr) return absl::OkStatus();
  if (!scaling->is_object()) return Invalid(name, "must be an object");
  const Fields rope(*scaling, absl::StrCat(name, "."));
  ASSIGN_OR_RETURN(config.rope_theta, rope.Number("rope_theta", config.rope_theta, 0, 1e12));
  ASSIGN_OR_RETURN(const std::string old_kind, rope.String("type", "default"));
  ASSIGN_OR_RETURN(const std::string kind, rope.String("rope_type", old_kind));
  RopeScaling& result = config.rope_scaling;
  if (kind == "default") return absl::OkStatus();
  if (kind != "linear" && kind != "llama3") {
    return Invalid(rope.Name("rope_type"), absl::StrCat("is not supported: \"", kind,
                                                        "\"; supported: default, linear, llama3"));
  }
  ASSIGN_OR_RETURN(result.factor, rope.Number("factor", std::nullopt, 0, 1e6));
  if (kind == "linear") {
    result.kind = RopeScaling::Kind::kLinear;
    return absl::OkStatus();
  }
  result.kind = RopeScaling::Kind::kLlama3;
  ASSIGN_OR_RETURN(result.low_frequency_factor,
                   rope.Number("low_freq_factor", std::nullopt, 0, 1e6));
  ASSIGN_OR_RETURN(result.high_frequency_factor,
                   rope.Number("high_freq_factor", std::nullopt, 0, 1e6));
  if (result.high_frequency_factor <= result.low_frequency_factor) {
    return Invalid(rope.Name("high_freq_factor"), "must be above low_freq_factor");
  }
  ASSIGN_OR_RETURN(result.original_max_position_embeddings,
                   rope.Number("original_max_position_embeddings", std::nullopt, 0, 1e9));
  return absl::OkStatus();
}

// The decoder attends to every earlier position. A window that never closes is the same thing.
absl::Status CheckSlidingWindow(const Fields& fields, const ModelConfig& config) {
  bool used = config.model_type == "mistral";
  if (config.model_type == "qwen2" || config.model_type == "qwen3") {
    ASSIGN_OR_RETURN(used, fields.Boolean("use_sliding_window", false));
  }
  if (const Json* types = fields.Find("layer_types")) {
    if (!types->is_array()) return Invalid("layer_types", "must be an array");
    for (const Json& type : *types) {
      if (type == "full_attention") continue;
      if (type != "sliding_attention") {
        return Invalid("layer_types", absl::StrCat("is not supported: ", Fields::Show(type),
                                                   "; supported: full_attention"));
      }
      used = true;
    }
  }
  if (!used) return absl::OkStatus();
  // A Mistral config that does not mention the window has transformers' default; null means none.
  const bool mentioned = config.source.contains("sliding_window");
  if (mentioned && fields.Find("sliding_window") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t window, fields.Integer("sliding_window", 4096, 1, kMaxPositions));
  if (window < config.max_position_embeddings) {
    return Invalid("sliding_window",
                   absl::StrCat("is not supported below max_position_embeddings (",
                                config.max_position_embeddings, "): ", window,
                                "; set it to null to attend to all earlier positions"));
  }
  return absl::OkStatus();
}

// `kv_heads_optional`: left out, there are as many key/value heads as query heads.
absl::StatusOr<BlockShape> ReadShape(const Fields& fields, bool kv_heads_optional) {
  BlockShape shape;
  ASSIGN_OR_RETURN(shape.num_heads,
                   fields.Integer("num_attention_heads", std::nullopt, 1, kMaxHeads));
  ASSIGN_OR_RETURN(shape.num_kv_heads,
                   fields.Integer("num_key_value_heads",
                                  kv_heads_optional ? std::optional(shape.num_heads) : std::nullopt,
                                  1, kMaxHeads));
  ASSIGN_OR_RETURN(shape.intermediate_size,
                   fields.Integer("intermediate_size", std::nullopt, 1, kMaxIntermediate));
  if (shape.num_heads % shape.num_kv_heads != 0) {
    return Invalid(fields.Name("num_key_value_heads"),
                   absl::StrCat("must divide num_attention_heads (", shape.num_heads,
                                "): ", shape.num_kv_heads));
  }
  return shape;
}

// Left out, the head size follows from the width, but of Qwen3, which has a fixed number.
absl::StatusOr<int64_t> ReadHeadDim(const Fields& fields, const ModelConfig& config,
                                    int64_t num_heads) {
  constexpr char kName[] = "head_dim";
  std::optional<int64_t> derived;
  if (fields.Find(kName) == nullptr && config.model_type != "qwen3") {
    const auto missing = [&](absl::string_view rule) {
      return Invalid(kName, absl::StrCat("is missing, and hidden_size (", config.hidden_size, ") ",
                                         rule, " num_attention_heads (", num_heads, ")"));
    };
    if (config.hidden_size % num_heads != 0) return missing("is not a multiple of");
    derived = config.hidden_size / num_heads;
    if (*derived > kMaxHeadDim) return missing(absl::StrCat("is above ", kMaxHeadDim, " times"));
  }
  ASSIGN_OR_RETURN(const int64_t head_dim, fields.Integer(kName, derived, 1, kMaxHeadDim));
  if (head_dim % 2 != 0) {
    return Invalid(kName, absl::StrCat("must be even, RoPE turns pairs: ", head_dim));
  }
  return head_dim;
}

// Blocks that differ in shape, as our PER_LAYER export writes them.
absl::Status ReadBlockShapes(const Json& shapes, ModelConfig& config) {
  constexpr char kName[] = "qpruner_block_shapes";
  if (!shapes.is_array() || shapes.size() != config.blocks.size()) {
    return Invalid(kName, absl::StrCat("must be an array with one entry for each of the ",
                                       config.blocks.size(), " blocks"));
  }
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (!shapes[i].is_object()) {
      return Invalid(absl::StrCat(kName, "[", i, "]"), "must be an object");
    }
    const Fields fields(shapes[i], absl::StrCat(kName, "[", i, "]."));
    ASSIGN_OR_RETURN(config.blocks[i], ReadShape(fields, /*kv_heads_optional=*/false));
  }
  return absl::OkStatus();
}

}  // namespace

bool ModelConfig::uniform() const {
  return std::all_of(blocks.begin(), blocks.end(),
                     [&](const BlockShape& shape) { return shape == blocks.front(); });
}

std::vector<int64_t> LinearShape(const ModelConfig& config, const BlockShape& shape,
                                 LinearKind kind) {
  const int64_t hidden = config.hidden_size;
  switch (kind) {
    case LinearKind::kQuery:
      return {shape.num_heads * config.head_dim, hidden};
    case LinearKind::kKey:
    case LinearKind::kValue:
      return {shape.num_kv_heads * config.head_dim, hidden};
    case LinearKind::kOutput:
      return {hidden, shape.num_heads * config.head_dim};
    case LinearKind::kGate:
    case LinearKind::kUp:
      return {shape.intermediate_size, hidden};
    case LinearKind::kDown:
      return {hidden, shape.intermediate_size};
  }
  return {};
}

bool LinearHasBias(const ModelConfig& config, LinearKind kind) {
  switch (kind) {
    case LinearKind::kQuery:
    case LinearKind::kKey:
    case LinearKind::kValue:
      return config.query_key_value_bias;
    case LinearKind::kOutput:
      return config.output_bias;
    case LinearKind::kGate:
    case LinearKind::kUp:
    case LinearKind::kDown:
      return config.mlp_bias;
  }
  return false;
}

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  std::vector<ExpectedTensor> result;
  const std::vector<int64_t> hidden = {config.hidden_size};
  result.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (int64_t i = 0; i < config.num_blocks(); ++i) {
    const BlockShape& shape = config.blocks[static_cast<size_t>(i)];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    result.push_back({prefix + "input_layernorm.weight", hidden});
    result.push_back({prefix + "post_attention_layernorm.weight", hidden});
    if (config.query_key_norm) {
      result.push_back({prefix + "self_attn.q_norm.weight", {config.head_dim}});
      result.push_back({prefix + "self_attn.k_norm.weight", {config.head_dim}});
    }
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> weight = LinearShape(config, shape, kind);
      result.push_back({LinearName(i, kind) + ".weight", weight});
      if (LinearHasBias(config, kind)) {
        result.push_back({LinearName(i, kind) + ".bias", {weight[0]}});
      }
    }
  }
  result.push_back({"model.norm.weight", hidden});
  if (!config.tie_word_embeddings) {
    result.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  }
  return result;
}

int64_t ParameterCount(const ModelConfig& config) {
  int64_t count = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    count +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  return count;
}

int64_t LinearParameterCount(const ModelConfig& config) {
  int64_t count = 0;
  for (const BlockShape& shape : config.blocks) {
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> linear = LinearShape(config, shape, kind);
      count += linear[0] * linear[1];
    }
  }
  return count;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json) {
  ModelConfig config;
  auto parsed = ParseStrictJsonObject(json);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", parsed.status().message()));
  }
  config.source = *std::move(parsed);
  const Fields fields(config.source);
  RETURN_IF_ERROR(CheckFamily(fields, config));
  const bool llama = config.model_type == "llama";
  const bool qwen2 = config.model_type == "qwen2";
  const bool qwen3 = config.model_type == "qwen3";
  if (fields.Find("quantization_config") != nullptr) {
    return Invalid("quantization_config",
                   "is not supported: give the unquantized model (F32, F16 or BF16 weights)");
  }
  ASSIGN_OR_RETURN(const std::string activation, fields.String("hidden_act", "silu"));
  if (activation != "silu") {
    return Invalid("hidden_act",
                   absl::StrCat("is not supported: \"", activation, "\"; supported: silu"));
  }
  ASSIGN_OR_RETURN(const double rotated, fields.Number("partial_rotary_factor", 1.0, 0, 1));
  if (rotated != 1) return Invalid("partial_rotary_factor", "is not supported below 1");

  ASSIGN_OR_RETURN(config.vocab_size, fields.Integer("vocab_size", std::nullopt, 1, kMaxVocab));
  ASSIGN_OR_RETURN(config.hidden_size, fields.Integer("hidden_size", std::nullopt, 1, kMaxHidden));
  ASSIGN_OR_RETURN(const int64_t num_blocks,
                   fields.Integer("num_hidden_layers", std::nullopt, 1, kMaxBlocks));
  // Left out, transformers takes as many as there are query heads for Llama, but a fixed number for
  // the others: those must say it.
  ASSIGN_OR_RETURN(const BlockShape shape, ReadShape(fields, /*kv_heads_optional=*/llama));
  config.blocks.assign(static_cast<size_t>(num_blocks), shape);
  ASSIGN_OR_RETURN(config.head_dim, ReadHeadDim(fields, config, shape.num_heads));
  if (const Json* shapes = fields.Find("qpruner_block_shapes")) {
    RETURN_IF_ERROR(ReadBlockShapes(*shapes, config));
  }
  ASSIGN_OR_RETURN(config.max_position_embeddings,
                   fields.Integer("max_position_embeddings", std::nullopt, 1, kMaxPositions));
  ASSIGN_OR_RETURN(config.rms_norm_eps, fields.Number("rms_norm_eps", 1e-6, 0, 1));
  ASSIGN_OR_RETURN(config.tie_word_embeddings, fields.Boolean("tie_word_embeddings", false));
  if (qwen2) {
    config.query_key_value_bias = true;
  } else if (llama || qwen3) {
    ASSIGN_OR_RETURN(config.query_key_value_bias, fields.Boolean("attention_bias", false));
    config.output_bias = config.query_key_value_bias;
  }
  if (llama) {
    ASSIGN_OR_RETURN(config.mlp_bias, fields.Boolean("mlp_bias", false));
  }
  config.query_key_norm = qwen3;
  RETURN_IF_ERROR(ReadRope(fields, config));
  RETURN_IF_ERROR(CheckSlidingWindow(fields, config));
  return config;
}

nlohmann::json ModelConfigToJson(const ModelConfig& config, absl::string_view torch_dtype) {
  Json json = config.source;
  if (!json.is_object()) json = Json::object();
  // The outer values must hold every block: plain transformers then refuses a non-uniform model by
  // shape instead of reading it wrongly. Head counts are one block's: those of two may not divide.
  BlockShape outer;
  for (const BlockShape& shape : config.blocks) {
    if (shape.num_heads > outer.num_heads) {
      outer.num_heads = shape.num_heads;
      outer.num_kv_heads = shape.num_kv_heads;
    }
    outer.intermediate_size = std::max(outer.intermediate_size, shape.intermediate_size);
  }
  json["model_type"] = config.model_type;
  for (const Family& family : kFamilies) {
    if (config.model_type == family.model_type) {
      json["architectures"] = Json::array({std::string(family.architecture)});
    }
  }
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["head_dim"] = config.head_dim;
  json["num_hidden_layers"] = config.num_blocks();
  json["num_attention_heads"] = outer.num_heads;
  json["num_key_value_heads"] = outer.num_kv_heads;
  json["intermediate_size"] = outer.intermediate_size;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["torch_dtype"] = std::string(torch_dtype);
  json.erase("dtype");  // transformers 5's name for torch_dtype, which it reads as well.
  json.erase("qpruner_block_shapes");
  if (!config.uniform()) {
    Json shapes = Json::array();
    for (const BlockShape& shape : config.blocks) {
      shapes.push_back({{"num_attention_heads", shape.num_heads},
                        {"num_key_value_heads", shape.num_kv_heads},
                        {"intermediate_size", shape.intermediate_size}});
    }
    json["qpruner_block_shapes"] = std::move(shapes);
  }
  return json;
}

}  // namespace qpruner::engine
