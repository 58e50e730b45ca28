#include "worker/engine/finetune/block_loops.h"

#include "worker/engine/split_mix.h"
#include "worker/engine/vector_clones.h"

namespace qpruner::engine {
namespace {

// Sums in 16 lanes, so that the order does not depend on the instruction set.
constexpr int64_t kLanes = 16;

}  // namespace

QPRUNER_VECTOR_CLONES
float SquareSum(const float* x, int64_t width) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
  }
  float sum = 0;
  for (; i < width; ++i) sum += x[i] * x[i];
  for (float lane : lanes) sum += lane;
  return sum;
}

QPRUNER_VECTOR_CLONES
float TripleDot(const float* x, const float* y, const float* z, int64_t width) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * y[i + j] * z[i + j];
  }
  float sum = 0;
  for (; i < width; ++i) sum += x[i] * y[i] * z[i];
  for (float lane : lanes) sum += lane;
  return sum;
}

QPRUNER_VECTOR_CLONES
void ScaleRow(const float* __restrict x, const float* __restrict weight, float scale, int64_t width,
              float* __restrict y) {
  for (int64_t i = 0; i < width; ++i) y[i] = (x[i] * scale) * weight[i];
}

// sum += scale (g w) - shift x
QPRUNER_VECTOR_CLONES
void AddNormGradientRow(const float* __restrict x, const float* __restrict weight,
                        const float* __restrict gradient, float scale, float shift, int64_t width,
                        float* __restrict sum) {
  for (int64_t i = 0; i < width; ++i) sum[i] += scale * (gradient[i] * weight[i]) - shift * x[i];
}

QPRUNER_VECTOR_CLONES
void RotateRow(const float* __restrict x, const float* __restrict cos, const float* __restrict sin,
               int64_t half, float* __restrict y) {
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cos[i] - x[half + i] * sin[i];
    y[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i];
  }
}

// The transposed rotation.
QPRUNER_VECTOR_CLONES
void RotateBackRow(const float* __restrict g, const float* __restrict cos,
                   const float* __restrict sin, int64_t half, float* __restrict d) {
  for (int64_t i = 0; i < half; ++i) {
    d[i] = g[i] * cos[i] + g[half + i] * sin[half + i];
    d[half + i] = g[half + i] * cos[half + i] - g[i] * sin[i];
  }
}

QPRUNER_VECTOR_CLONES
void AddRow(const float* __restrict x, int64_t width, float* __restrict y) {
  for (int64_t i = 0; i < width; ++i) y[i] += x[i];
}

QPRUNER_VECTOR_CLONES
void SwiGluRow(const float* __restrict gate, const float* __restrict up,
               const float* __restrict sigmoid, int64_t width, float* __restrict activation) {
  for (int64_t i = 0; i < width; ++i) activation[i] = gate[i] * sigmoid[i] * up[i];
}

QPRUNER_VECTOR_CLONES
void SwiGluBackwardRow(const float* __restrict gate, const float* __restrict up,
                       const float* __restrict sigmoid, const float* __restrict gradient,
                       int64_t width, float* __restrict gate_gradient,
                       float* __restrict up_gradient) {
  for (int64_t i = 0; i < width; ++i) {
    const float s = sigmoid[i];
    const float g = gradient[i];
    up_gradient[i] = g * (gate[i] * s);
    gate_gradient[i] = g * up[i] * (s + gate[i] * s * (1.0f - s));
  }
}

QPRUNER_VECTOR_CLONES
void MaskRow(uint64_t key, uint32_t threshold, float scale, int64_t width, float* mask) {
  for (int64_t i = 0; i < width; i += 2) {
    const uint64_t draw = SplitMix(key + static_cast<uint64_t>(i));
    mask[i] = static_cast<uint32_t>(draw) < threshold ? 0.0f : scale;
    if (i + 1 < width) mask[i + 1] = static_cast<uint32_t>(draw >> 32) < threshold ? 0.0f : scale;
  }
}

}  // namespace qpruner::engine
