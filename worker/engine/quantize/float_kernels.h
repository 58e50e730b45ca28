// Small exact operations on float32 that the kernels of all formats share. No LibTorch here.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_FLOAT_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_FLOAT_KERNELS_H_

#include <algorithm>
#include <bit>
#include <cstdint>

#include "worker/engine/vector_clones.h"

namespace qpruner::engine {

QPRUNER_INLINE uint32_t AbsBits(float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFF; }

// The largest magnitude's bits. Integers order as the magnitudes of the floats do, and their
// maximum vectorizes without leave to ignore NaN.
QPRUNER_INLINE uint32_t MaxAbsBits(const float* values, int64_t count) {
  uint32_t max = 0;
  for (int64_t i = 0; i < count; ++i) max = std::max(max, AbsBits(values[i]));
  return max;
}

QPRUNER_INLINE float MaxAbs(const float* values, int64_t count) {
  return std::bit_cast<float>(MaxAbsBits(values, count));
}

// To the nearest integer, halves to even. |x| < 2^22.
QPRUNER_INLINE int32_t RoundHalfEven(float x) {
  // At 1.5 * 2^23 a float's last place is 1, so the addition rounds, and the integer is in the
  // mantissa. Vectorizes on every x86-64, unlike rint.
  constexpr float kMagic = 12582912.0f;
  return std::bit_cast<int32_t>(x + kMagic) - std::bit_cast<int32_t>(kMagic);
}

// False if any of `count` values is infinite or NaN.
bool AllFinite(const float* values, int64_t count);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_FLOAT_KERNELS_H_
