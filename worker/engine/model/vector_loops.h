// What loops over bfloat16 and float32 rows are made of. The loops are plain ones that the compiler
// vectorizes (`#pragma omp simd` lets it reorder their sums), in functions that are compiled once
// for each instruction set (QPRUNER_VECTOR_CLONES). GCC's own vector types would not do: it splits
// them for the smallest instruction set before it clones.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_VECTOR_LOOPS_H_
#define QPRUNER_WORKER_ENGINE_MODEL_VECTOR_LOOPS_H_

#include <bit>
#include <cstdint>

#include "worker/engine/vector_clones.h"

namespace qpruner::engine {

QPRUNER_INLINE float ToFloat(uint16_t bfloat16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bfloat16) << 16);
}
QPRUNER_INLINE float ToFloat(float value) { return value; }

// To nearest, ties to even. NaN may become infinite.
QPRUNER_INLINE uint16_t ToBFloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// e^x for -1e6 < x <= 0, relative error below 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2]
// (Cephes' expf); 0 below -87.3, where float32 ends. The bound is held in whole numbers: a
// comparison of floats could trap, and then the compiler does not vectorize.
QPRUNER_INLINE float ExpOfNegative(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number.
  const float shifted = x * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - 0x4B400000 + 127;
  const int32_t bounded = exponent > 0 ? exponent : 0;
  return p * std::bit_cast<float>(static_cast<uint32_t>(bounded) << 23);
}

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_VECTOR_LOOPS_H_
