// Sixteen float32 lanes, in GCC's portable vectors, for loops over bfloat16 data. Included by kernels
// that are compiled once for each instruction set (QPRUNER_VECTOR_CLONES); everything here is inlined
// into them.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_VECTOR_LANES_H_
#define QPRUNER_WORKER_ENGINE_MODEL_VECTOR_LANES_H_

#include <cstdint>
#include <cstring>

// One binary for any x86-64, yet AVX2 and AVX-512 where they are: the loader picks the clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QPRUNER_VECTOR_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define QPRUNER_VECTOR_CLONES
#endif
#define QPRUNER_LANES_INLINE inline __attribute__((always_inline))

// Vectors are passed between inlined functions only: their calling convention does not matter.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"

namespace qpruner::engine::lanes {

inline constexpr int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

QPRUNER_LANES_INLINE float ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Round to nearest, ties to even. NaN stays NaN.
QPRUNER_LANES_INLINE uint16_t ToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

QPRUNER_LANES_INLINE void Load(const uint16_t* from, Floats& to) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof to);
}

// Finite values only are rounded correctly; NaN may become infinite.
QPRUNER_LANES_INLINE void Store(const Floats& from, uint16_t* to) {
  Words words;
  std::memcpy(&words, &from, sizeof words);
  words = (words + 0x7FFF + ((words >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(words, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

QPRUNER_LANES_INLINE float Sum(const Floats& values) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += values[i];
  return sum;
}

QPRUNER_LANES_INLINE float Max(const Floats& values) {
  float max = values[0];
  for (int64_t i = 1; i < kLanes; ++i) max = values[i] > max ? values[i] : max;
  return max;
}

// e^x for x <= 0, relative error below 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes'
// expf). Below -87 it is 0 or near to it.
QPRUNER_LANES_INLINE void Exp(const Floats& input, Floats& result) {
  const Floats lowest = Floats{} - 87.0f;
  const Floats x = input > lowest ? input : lowest;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number.
  const Floats shifted = x * 1.44269504088896341f + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints bits, scale;
  std::memcpy(&bits, &shifted, sizeof bits);
  scale = (bits - 0x4B400000 + 127) << 23;
  Floats power;
  std::memcpy(&power, &scale, sizeof power);
  result = input > lowest ? p * power : Floats{};
}

}  // namespace qpruner::engine::lanes

#pragma GCC diagnostic pop

#endif  // QPRUNER_WORKER_ENGINE_MODEL_VECTOR_LANES_H_
