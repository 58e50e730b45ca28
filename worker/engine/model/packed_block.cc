#include "worker/engine/model/packed_block.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <string>
#include <vector>

#include "worker/engine/model/row_kernels.h"

namespace qpruner::engine {
namespace {

// Positions that attend together: wide enough for the matrix products, narrow enough to leave out
// most of what they do not see.
constexpr int64_t kPositionsPerBlock = 128;

// LibTorch's oneDNN linears are operators without a C++ declaration (they serve its compiler).
c10::OperatorHandle Operator(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

std::optional<at::Tensor> Optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// activation(x W^T + b); `activation` is "none" or "swish" (SiLU).
at::Tensor Apply(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                 const char* activation) {
  static const auto linear =
      Operator("mkldnn::_linear_pointwise")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            c10::string_view, c10::List<std::optional<at::Scalar>>,
                            std::optional<c10::string_view>)>();
  return linear.call(x, weight, Optional(bias), activation, c10::List<std::optional<at::Scalar>>(),
                     "");
}

// (x W^T + b) with `other`; `operation` is "mul" or "add".
at::Tensor ApplyWith(const at::Tensor& x, const at::Tensor& other, const at::Tensor& weight,
                     const at::Tensor& bias, const char* operation) {
  static const auto linear =
      Operator("mkldnn::_linear_pointwise", "binary")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const std::optional<at::Tensor>&, c10::string_view)>();
  return linear.call(x, other, weight, Optional(bias), operation);
}

at::Tensor Joined(const std::vector<at::Tensor>& parts) {
  for (const at::Tensor& part : parts) {
    if (!part.defined()) return {};
  }
  return at::cat(parts, 0);
}

bool HasBFloat16Products() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

at::Tensor Contiguous(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.contiguous() : tensor;
}

}  // namespace

bool CanPackBlocks(at::Device device, at::ScalarType dtype) {
  return device.is_cpu() && dtype == at::kBFloat16 && at::globalContext().userEnabledMkldnn() &&
         HasBFloat16Products() &&
         c10::Dispatcher::singleton().findSchema({"mkldnn::_reorder_linear_weight", ""}) &&
         c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
}

PackedBlock::Linear PackedBlock::Pack(const at::Tensor& weight, const at::Tensor& bias,
                                      int64_t tokens) {
  static const auto reorder =
      Operator("mkldnn::_reorder_linear_weight")
          .typed<at::Tensor(const at::Tensor&, std::optional<c10::SymInt>)>();
  return {reorder.call(weight.contiguous(), c10::SymInt(tokens)), bias};
}

PackedBlock::PackedBlock(const ModelConfig& config, const BlockShape& shape,
                         const BlockWeights& weights, int64_t tokens)
    : config_(config),
      shape_(shape),
      attention_norm_(Contiguous(weights.attention_norm)),
      mlp_norm_(Contiguous(weights.mlp_norm)),
      query_norm_(Contiguous(weights.query_norm)),
      key_norm_(Contiguous(weights.key_norm)) {
  at::NoGradGuard no_grad;
  const auto of = [](const PerLinear<at::Tensor>& tensors, std::vector<LinearKind> kinds) {
    std::vector<at::Tensor> parts;
    for (const LinearKind kind : kinds) parts.push_back(tensors[kind]);
    return Joined(parts);
  };
  const std::vector<LinearKind> joined = {LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue};
  projection_ = Pack(of(weights.weight, joined), of(weights.bias, joined), tokens);
  const auto pack = [&](LinearKind kind) {
    return Pack(weights.weight[kind], weights.bias[kind], tokens);
  };
  output_ = pack(LinearKind::kOutput);
  gate_ = pack(LinearKind::kGate);
  up_ = pack(LinearKind::kUp);
  down_ = pack(LinearKind::kDown);
}

at::Tensor PackedBlock::Attend(const RotaryTables& rotary, const at::Tensor& projection,
                               int64_t batch, int64_t length) const {
  const HeadLayout layout{.batch = batch,
                          .length = length,
                          .kv_heads = shape_.num_kv_heads,
                          .group = shape_.num_heads / shape_.num_kv_heads,
                          .head_dim = config_.head_dim};
  const AttentionInputs inputs = SplitProjection(projection, layout, rotary.cos, rotary.sin,
                                                 query_norm_, key_norm_, config_.rms_norm_eps);
  const at::Tensor keys = inputs.key.transpose(1, 2);
  at::Tensor attention =
      at::empty({batch * length, shape_.num_heads * config_.head_dim}, projection.options());
  for (int64_t first = 0; first < length; first += kPositionsPerBlock) {
    const int64_t positions = std::min(kPositionsPerBlock, length - first);
    const int64_t end = first + positions;
    const at::Tensor query = inputs.query.narrow(1, first * layout.group, positions * layout.group);
    const at::Tensor scores = at::bmm(query, keys.narrow(2, 0, end));
    const at::Tensor scale = CausalExp(scores, first, layout.group);
    const at::Tensor weighted = at::bmm(scores, inputs.value.narrow(1, 0, end));
    MergeHeads(weighted, scale, layout, first, attention);
  }
  return attention;
}

at::Tensor PackedBlock::Forward(const RotaryTables& rotary, const at::Tensor& hidden) const {
  at::NoGradGuard no_grad;
  const int64_t batch = hidden.size(0), length = hidden.size(1);
  const at::Tensor rows = hidden.contiguous().view({batch * length, hidden.size(2)});
  at::Tensor x = RmsNormRows(rows, attention_norm_, config_.rms_norm_eps);
  const at::Tensor projection = Apply(x, projection_.weight, projection_.bias, "none");
  const at::Tensor attention = Attend(rotary, projection, batch, length);
  const at::Tensor residual = ApplyWith(attention, rows, output_.weight, output_.bias, "add");
  x = RmsNormRows(residual, mlp_norm_, config_.rms_norm_eps);
  const at::Tensor gate = Apply(x, gate_.weight, gate_.bias, "swish");
  const at::Tensor product = ApplyWith(x, gate, up_.weight, up_.bias, "mul");
  return ApplyWith(product, residual, down_.weight, down_.bias, "add").view(hidden.sizes());
}

}  // namespace qpruner::engine
