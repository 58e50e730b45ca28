#include "worker/engine/model/decoder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

namespace qpruner::engine {
namespace {

// Inverse frequencies [head_dim / 2] in float32, as transformers computes them.
at::Tensor InverseFrequencies(const ModelConfig& config) {
  const auto options = at::TensorOptions().dtype(at::kFloat);
  at::Tensor exponent = at::arange(0, config.head_dim, 2, options) / config.head_dim;
  at::Tensor inverse = at::reciprocal(at::pow(at::Scalar(config.rope_theta), exponent));
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      return inverse;
    case RopeScaling::Kind::kLinear:
      return inverse / scaling.factor;
    case RopeScaling::Kind::kLlama3:
      break;
  }
  // Long waves are stretched by `factor`, short ones kept, those between interpolated.
  const double positions = scaling.original_max_position_embeddings;
  const double longest_kept = positions / scaling.high_frequency_factor;
  const double shortest_stretched = positions / scaling.low_frequency_factor;
  at::Tensor wavelength = at::reciprocal(inverse) * (2 * std::numbers::pi);
  at::Tensor smooth = (at::reciprocal(wavelength) * positions - scaling.low_frequency_factor) /
                      (scaling.high_frequency_factor - scaling.low_frequency_factor);
  at::Tensor between = (1 - smooth) * inverse / scaling.factor + smooth * inverse;
  at::Tensor result = at::where(wavelength > shortest_stretched, inverse / scaling.factor, inverse);
  return at::where((wavelength <= shortest_stretched) & (wavelength >= longest_kept), between,
                   result);
}

// x [batch, heads, length, head_dim]; pairs are (i, i + head_dim / 2), as Hugging Face orders them.
at::Tensor ApplyRotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  at::Tensor rotated = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  return x * cos + rotated * sin;
}

// [batch, length, heads * head_dim] -> [batch, heads, length, head_dim]
at::Tensor SplitHeads(const at::Tensor& x, int64_t heads, int64_t head_dim) {
  return x.view({x.size(0), x.size(1), heads, head_dim}).transpose(1, 2);
}

// Gives every query head its own copy of the key/value head it reads.
at::Tensor RepeatHeads(const at::Tensor& x, int64_t times) {
  if (times == 1) return x;
  const int64_t batch = x.size(0), heads = x.size(1), length = x.size(2), head_dim = x.size(3);
  return x.unsqueeze(2)
      .expand({batch, heads, times, length, head_dim})
      .reshape({batch, heads * times, length, head_dim});
}

// All [batch, heads, length, head_dim].
at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value) {
  const int64_t head_dim = query.size(-1);
  const auto attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                            /*is_causal=*/true,
                                            1.0 / std::sqrt(static_cast<double>(head_dim)));
  };
  if (head_dim >= kNarrowestHead) return attend(query, key, value);
  const auto pad = [&](const at::Tensor& x) {
    return at::constant_pad_nd(x, {0, kNarrowestHead - head_dim});
  };
  return attend(pad(query), pad(key), pad(value)).narrow(-1, 0, head_dim);
}

// A converted part of the head: 8 MiB in float32.
constexpr int64_t kHeadSliceElements = int64_t{2} << 20;

// Calls `work(first row, rows of the head as dtype)` for consecutive parts.
void ForEachHeadSlice(const at::Tensor& head, at::ScalarType dtype,
                      const std::function<void(int64_t, const at::Tensor&)>& work) {
  const int64_t rows = std::max<int64_t>(1, kHeadSliceElements / head.size(1));
  for (int64_t first = 0; first < head.size(0); first += rows) {
    work(first, head.narrow(0, first, std::min(rows, head.size(0) - first)).to(dtype));
  }
}

}  // namespace

at::Tensor PlainLinear(LinearKind /*kind*/, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& bias) {
  if (!bias.defined()) return at::linear(x, weight);
  return at::linear(x, weight, bias);
}

RotaryTables MakeRotaryTables(const ModelConfig& config, int64_t length, at::Device device,
                              at::ScalarType dtype) {
  at::Tensor positions = at::arange(length, at::TensorOptions().dtype(at::kFloat));
  at::Tensor angles = at::outer(positions, InverseFrequencies(config));
  angles = at::cat({angles, angles}, -1);
  return {at::cos(angles).to(device, dtype), at::sin(angles).to(device, dtype)};
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  // Double stays double, for gradient checks.
  at::Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  at::Tensor scale = at::rsqrt(at::mean(wide * wide, -1, /*keepdim=*/true) + eps);
  return (wide * scale).to(x.scalar_type()) * weight;
}

at::Tensor Embed(WeightSource& source, const at::Tensor& ids) {
  return at::embedding(source.Embedding(), ids.to(source.device())).to(source.dtype());
}

at::Tensor HeadLogits(const at::Tensor& rows, const at::Tensor& head) {
  if (rows.scalar_type() == head.scalar_type()) return at::linear(rows, head);
  at::Tensor logits = at::empty({rows.size(0), head.size(0)}, rows.options());
  ForEachHeadSlice(head, rows.scalar_type(), [&](int64_t first, const at::Tensor& slice) {
    at::Tensor part = logits.narrow(1, first, slice.size(0));
    at::mm_out(part, rows, slice.t());
  });
  return logits;
}

at::Tensor HeadLogitsBackward(const at::Tensor& gradient, const at::Tensor& head) {
  if (gradient.scalar_type() == head.scalar_type()) return at::matmul(gradient, head);
  at::Tensor result = at::zeros({gradient.size(0), head.size(1)}, gradient.options());
  ForEachHeadSlice(head, gradient.scalar_type(), [&](int64_t first, const at::Tensor& slice) {
    result.addmm_(gradient.narrow(1, first, slice.size(0)), slice);
  });
  return result;
}

at::Tensor BlockForward(const ModelConfig& config, const BlockShape& shape,
                        const BlockWeights& weights, const RotaryTables& rotary,
                        const at::Tensor& hidden, const LinearFunction& linear) {
  const auto apply = [&](LinearKind kind, const at::Tensor& x) {
    return linear(kind, x, weights.weight[kind], weights.bias[kind]);
  };
  const int64_t length = hidden.size(1);
  const at::Tensor cos = rotary.cos.narrow(0, 0, length);
  const at::Tensor sin = rotary.sin.narrow(0, 0, length);

  at::Tensor x = RmsNorm(hidden, weights.attention_norm, config.rms_norm_eps);
  at::Tensor query = SplitHeads(apply(LinearKind::kQuery, x), shape.num_heads, config.head_dim);
  at::Tensor key = SplitHeads(apply(LinearKind::kKey, x), shape.num_kv_heads, config.head_dim);
  at::Tensor value = SplitHeads(apply(LinearKind::kValue, x), shape.num_kv_heads, config.head_dim);
  if (config.query_key_norm) {
    query = RmsNorm(query, weights.query_norm, config.rms_norm_eps);
    key = RmsNorm(key, weights.key_norm, config.rms_norm_eps);
  }
  query = ApplyRotary(query, cos, sin);
  key = ApplyRotary(key, cos, sin);
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  at::Tensor attention = CausalAttention(query, RepeatHeads(key, group), RepeatHeads(value, group));
  attention = attention.transpose(1, 2).reshape(
      {hidden.size(0), length, shape.num_heads * config.head_dim});
  at::Tensor residual = hidden + apply(LinearKind::kOutput, attention);

  x = RmsNorm(residual, weights.mlp_norm, config.rms_norm_eps);
  const at::Tensor gate = at::silu(apply(LinearKind::kGate, x));
  return residual + apply(LinearKind::kDown, gate * apply(LinearKind::kUp, x));
}

}  // namespace qpruner::engine
