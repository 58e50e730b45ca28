#include "worker/engine/model/row_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/model/vector_loops.h"

namespace qpruner::engine {
namespace {

uint16_t* Data(const at::Tensor& tensor) {
  return reinterpret_cast<uint16_t*>(tensor.mutable_data_ptr<at::BFloat16>());
}
const uint16_t* ConstData(const at::Tensor& tensor) {
  return reinterpret_cast<const uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
}

QPRUNER_INLINE float InverseRms(const uint16_t* x, int64_t width, float eps) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += ToFloat(x[i]) * ToFloat(x[i]);
  return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

QPRUNER_VECTOR_CLONES void NormalizeRow(const uint16_t* x, const uint16_t* weight, int64_t width,
                                        float eps, uint16_t* y) {
  const float scale = InverseRms(x, width, eps);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    y[i] = ToBFloat16(ToFloat(x[i]) * scale * ToFloat(weight[i]));
  }
}

// One head of one token: rotated (pairs are i and i + width / 2) and scaled.
QPRUNER_VECTOR_CLONES void RotateHead(const uint16_t* x, const float* cos, const float* sin,
                                      int64_t width, float scale, uint16_t* y) {
  const int64_t half = width / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float low = ToFloat(x[i]), high = ToFloat(x[half + i]);
    y[i] = ToBFloat16((low * cos[i] - high * sin[i]) * scale);
    y[half + i] = ToBFloat16((high * cos[half + i] + low * sin[half + i]) * scale);
  }
}

// The same behind an RMS norm, which is not rounded.
QPRUNER_VECTOR_CLONES void RotateNormedHead(const uint16_t* x, const uint16_t* weight,
                                            const float* cos, const float* sin, int64_t width,
                                            float eps, float scale, uint16_t* y) {
  const int64_t half = width / 2;
  const float norm = InverseRms(x, width, eps);
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float low = ToFloat(x[i]) * norm * ToFloat(weight[i]);
    const float high = ToFloat(x[half + i]) * norm * ToFloat(weight[half + i]);
    y[i] = ToBFloat16((low * cos[i] - high * sin[i]) * scale);
    y[half + i] = ToBFloat16((high * cos[half + i] + low * sin[half + i]) * scale);
  }
}

// exp(score - max) of the first `seen` keys, 0 for the others. Returns 1 / sum.
QPRUNER_VECTOR_CLONES float ExpRow(uint16_t* scores, int64_t seen, int64_t keys) {
  float max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < seen; ++i) {
    const float score = ToFloat(scores[i]);
    max = score > max ? score : max;
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < seen; ++i) {
    const float power = ExpOfNegative(ToFloat(scores[i]) - max);
    sum += power;
    scores[i] = ToBFloat16(power);
  }
  std::fill(scores + seen, scores + keys, uint16_t{0});
  return 1.0f / sum;
}

QPRUNER_VECTOR_CLONES void ScaleRow(const uint16_t* x, float scale, int64_t width, uint16_t* y) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) y[i] = ToBFloat16(ToFloat(x[i]) * scale);
}

// Rows a thread takes at a time: enough to be worth waking it.
int64_t Grain(int64_t row_width) { return std::max<int64_t>(1, (int64_t{1} << 14) / row_width); }

}  // namespace

at::Tensor RmsNormRows(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const int64_t width = x.size(-1);
  at::Tensor y = at::empty_like(x);
  const uint16_t* const in = ConstData(x);
  const uint16_t* const factors = ConstData(weight);
  uint16_t* const out = Data(y);
  at::parallel_for(0, x.numel() / width, Grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      NormalizeRow(in + row * width, factors, width, static_cast<float>(eps), out + row * width);
    }
  });
  return y;
}

AttentionInputs SplitProjection(const at::Tensor& projection, const HeadLayout& layout,
                                const at::Tensor& cos, const at::Tensor& sin,
                                const at::Tensor& query_norm, const at::Tensor& key_norm,
                                double eps) {
  const auto [batch, length, kv_heads, group, width] = layout;
  const int64_t heads = kv_heads * group;
  const int64_t row = (heads + 2 * kv_heads) * width;
  AttentionInputs inputs{
      .query = at::empty({batch * kv_heads, length * group, width}, projection.options()),
      .key = at::empty({batch * kv_heads, length, width}, projection.options()),
      .value = at::empty({batch * kv_heads, length, width}, projection.options())};
  const uint16_t* const in = ConstData(projection);
  uint16_t* const query = Data(inputs.query);
  uint16_t* const key = Data(inputs.key);
  uint16_t* const value = Data(inputs.value);
  const float* const cosines = cos.const_data_ptr<float>();
  const float* const sines = sin.const_data_ptr<float>();
  const uint16_t* const query_weight = query_norm.defined() ? ConstData(query_norm) : nullptr;
  const uint16_t* const key_weight = key_norm.defined() ? ConstData(key_norm) : nullptr;
  const auto epsilon = static_cast<float>(eps);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  at::parallel_for(0, batch * length, Grain(row),
                   [&, batch = batch, length = length, kv_heads = kv_heads, group = group,
                    width = width](int64_t begin, int64_t end) {
                     for (int64_t token = begin; token < end; ++token) {
                       const int64_t sequence = token / length, position = token % length;
                       const uint16_t* const from = in + token * row;
                       const float* const c = cosines + position * width;
                       const float* const s = sines + position * width;
                       for (int64_t kv = 0; kv < kv_heads; ++kv) {
                         const int64_t at = (sequence * kv_heads + kv) * length + position;
                         const auto rotate = [&](const uint16_t* x, const uint16_t* weight,
                                                 float factor, uint16_t* y) {
                           if (weight == nullptr) {
                             RotateHead(x, c, s, width, factor, y);
                           } else {
                             RotateNormedHead(x, weight, c, s, width, epsilon, factor, y);
                           }
                         };
                         for (int64_t g = 0; g < group; ++g) {
                           rotate(from + (kv * group + g) * width, query_weight, scale,
                                  query + (at * group + g) * width);
                         }
                         rotate(from + (heads + kv) * width, key_weight, 1.0f, key + at * width);
                         std::copy_n(from + (heads + kv_heads + kv) * width, width,
                                     value + at * width);
                       }
                     }
                   });
  return inputs;
}

at::Tensor CausalExp(const at::Tensor& scores, int64_t first, int64_t group) {
  const int64_t rows = scores.size(1), keys = scores.size(2);
  at::Tensor scale = at::empty({scores.size(0), rows}, at::kFloat);
  uint16_t* const data = Data(scores);
  float* const scales = scale.mutable_data_ptr<float>();
  at::parallel_for(0, scores.size(0) * rows, Grain(keys), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t seen = first + (row % rows) / group + 1;
      scales[row] = ExpRow(data + row * keys, seen, keys);
    }
  });
  return scale;
}

void MergeHeads(const at::Tensor& weighted, const at::Tensor& scale, const HeadLayout& layout,
                int64_t first, const at::Tensor& out) {
  const auto [batch, length, kv_heads, group, width] = layout;
  const int64_t positions = weighted.size(1) / group;
  const uint16_t* const in = ConstData(weighted);
  const float* const scales = scale.const_data_ptr<float>();
  uint16_t* const to = Data(out);
  at::parallel_for(
      0, batch * kv_heads * positions, Grain(group * width),
      [&, length = length, kv_heads = kv_heads, group = group, width = width](int64_t begin,
                                                                              int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t matrix = i / positions, position = first + i % positions;
          const int64_t token = matrix / kv_heads * length + position;
          uint16_t* const row = to + (token * kv_heads + matrix % kv_heads) * group * width;
          for (int64_t g = 0; g < group; ++g) {
            ScaleRow(in + (i * group + g) * width, scales[i * group + g], width, row + g * width);
          }
        }
      });
}

}  // namespace qpruner::engine
