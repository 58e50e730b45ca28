#include "worker/engine/export/checkpoint_tensors.h"

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace qpruner::engine {
namespace {

// `rest` is the name behind "model.layers.N.". Undefined if there is no such tensor.
at::Tensor TensorOfBlock(const BlockWeights& weights, absl::string_view rest) {
  if (rest == "input_layernorm.weight") return weights.attention_norm;
  if (rest == "post_attention_layernorm.weight") return weights.mlp_norm;
  if (rest == "self_attn.q_norm.weight") return weights.query_norm;
  if (rest == "self_attn.k_norm.weight") return weights.key_norm;
  for (LinearKind kind : kLinearKinds) {
    absl::string_view suffix = rest;
    if (!absl::ConsumePrefix(&suffix, LinearSuffix(kind))) continue;
    if (suffix == ".weight") return weights.weight[kind];
    if (suffix == ".bias") return weights.bias[kind];
  }
  return {};
}

}  // namespace

at::Tensor CheckpointTensors::Get(const std::string& name) {
  if (name == "model.embed_tokens.weight") return source_.Embedding();
  if (name == "model.norm.weight") return source_.FinalNorm();
  if (name == "lm_head.weight") return source_.Head();
  at::Tensor tensor;
  absl::string_view rest = name;
  if (absl::ConsumePrefix(&rest, "model.layers.")) {
    int64_t block = -1;
    const size_t dot = rest.find('.');
    if (dot != absl::string_view::npos && absl::SimpleAtoi(rest.substr(0, dot), &block) &&
        block >= 0 && block < source_.config().num_blocks()) {
      if (block != block_) {
        weights_ = {};  // Freed first: one block in memory, not two.
        weights_ = source_.BlockWith(linears_, block);
        block_ = block;
      }
      tensor = TensorOfBlock(weights_, rest.substr(dot + 1));
    }
  }
  TORCH_CHECK_VALUE(tensor.defined(), "The model has no tensor ", name);
  return tensor;
}

}  // namespace qpruner::engine
