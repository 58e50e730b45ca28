#include "worker/engine/quantize/integer_kernels.h"

#include <algorithm>
#include <cmath>

#include "worker/engine/quantize/float_kernels.h"
#include "worker/engine/vector_clones.h"

namespace qpruner::engine {

QPRUNER_VECTOR_CLONES
float EncodeInt8Row(const float* values, int64_t count, int8_t* codes) {
  const float max = MaxAbs(values, count);
  // As PyTorch divides a number by a tensor: the inverse first, which rounds twice. A row of zeros
  // would give 0 * infinity, which bitsandbytes' conversion to int8 makes 0.
  const float scale = max > 0 ? (1.0f / max) * 127.0f : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(RoundHalfEven(values[i] * scale));
  }
  return max;
}

QPRUNER_VECTOR_CLONES
void DecodeInt8Row(const int8_t* codes, float absmax, int64_t count, float* values) {
  // bitsandbytes multiplies by the inverse of 127 instead of dividing, from the left.
  constexpr float kInverse127 = 7.874015718698502e-3f;
  for (int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(codes[i]) * absmax * kInverse127;
  }
}

QPRUNER_VECTOR_CLONES
float SymmetricStep(const float* values, int64_t count, int bits) {
  return MaxAbs(values, count) / (static_cast<float>((1 << bits) - 1) / 2);
}

QPRUNER_VECTOR_CLONES
IntegerRange AsymmetricRange(const float* values, int64_t count, int bits) {
  float low = 0;
  float high = 0;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  const float steps = static_cast<float>((1 << bits) - 1);
  // Divided one by one where high - low is beyond float32.
  const float span = high - low;
  return {low, std::isfinite(span) ? span / steps : high / steps - low / steps};
}

int ZeroPointOf(const IntegerRange& range, float scale, int bits) {
  if (!(scale > 0)) return 0;
  const float last = static_cast<float>((1 << bits) - 1);
  return RoundHalfEven(std::min(-range.low / scale, last));
}

QPRUNER_VECTOR_CLONES
void EncodeIntegers(const float* values, int64_t count, float scale, int zero_point, int bits,
                    uint8_t* codes) {
  const int middle = 1 << (bits - 1);
  if (!(scale > 0)) {
    std::fill(codes, codes + count, static_cast<uint8_t>(zero_point));
    return;
  }
  // In signed codes, as compressed-tensors: the addition rounds, and so do halves, as there.
  const float zero = static_cast<float>(zero_point - middle);
  const float low = static_cast<float>(-middle);
  const float high = static_cast<float>(middle - 1);
  for (int64_t i = 0; i < count; ++i) {
    const float position = std::min(std::max(values[i] / scale + zero, low), high);
    codes[i] = static_cast<uint8_t>(RoundHalfEven(position) + middle);
  }
}

QPRUNER_VECTOR_CLONES
void DecodeIntegers(const uint8_t* codes, int64_t count, float scale, int zero_point,
                    float* values) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(codes[i] - zero_point) * scale;
  }
}

}  // namespace qpruner::engine
