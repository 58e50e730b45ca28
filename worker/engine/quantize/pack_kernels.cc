#include "worker/engine/quantize/pack_kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

// One binary for any x86-64, yet AVX2 and AVX-512 where they are: the loader picks the clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QPRUNER_VECTOR_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define QPRUNER_VECTOR_CLONES
#endif
#define QPRUNER_INLINE inline __attribute__((always_inline))

namespace qpruner::engine {

extern const std::array<float, 16> kNf4Values;  // Declared for others in format.h.

constexpr std::array<float, 16> kNf4Table = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
const std::array<float, 16> kNf4Values = kNf4Table;

namespace {

constexpr int64_t kBlock = 64;

// Midpoints, each rounded to float32 as bitsandbytes computes them: sum first, then half.
constexpr std::array<float, 15> Nf4Bounds() {
  std::array<float, 15> bounds{};
  for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = (kNf4Table[i] + kNf4Table[i + 1]) / 2;
  return bounds;
}
constexpr std::array<float, 15> kNf4Bounds = Nf4Bounds();

// The absmax is never taken below this in the division, so that a block of zeros does not divide by
// zero. (It is subnormal in float32, as in bitsandbytes.)
constexpr float kSmallestDivisor = 1e-38f;

constexpr uint32_t kInfinityBits = 0x7F800000;

QPRUNER_INLINE uint32_t AbsBits(float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFF; }

// Integers order as the magnitudes of the floats do, and their maximum vectorizes without leave to
// ignore NaN.
QPRUNER_INLINE uint32_t MaxAbsBits(const float* values, int64_t count) {
  uint32_t max = 0;
  for (int64_t i = 0; i < count; ++i) max = std::max(max, AbsBits(values[i]));
  return max;
}

// The number of bounds below `x`: a value on a bound goes down.
QPRUNER_INLINE int32_t Nf4Code(float x) {
  int32_t code = 0;
  for (float bound : kNf4Bounds) code += x > bound;
  return code;
}

// To the nearest integer, halves to even. |x| < 2^22.
QPRUNER_INLINE int32_t RoundHalfEven(float x) {
  // At 1.5 * 2^23 a float's last place is 1, so the addition rounds, and the integer is in the
  // mantissa. Vectorizes on every x86-64, unlike rint.
  constexpr float kMagic = 12582912.0f;
  return std::bit_cast<int32_t>(x + kMagic) - std::bit_cast<int32_t>(kMagic);
}

// Two 4-bit codes a byte, the even one in the high nibble.
QPRUNER_INLINE void PackNibbles(const uint8_t* codes, int64_t count, uint8_t* packed) {
  for (int64_t i = 0; i < count / 2; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
}

QPRUNER_INLINE int Nibble(const uint8_t* packed, int64_t i) {
  return packed[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xF;
}

}  // namespace

QPRUNER_VECTOR_CLONES
bool AllFinite(const float* values, int64_t count) {
  return MaxAbsBits(values, count) < kInfinityBits;
}

QPRUNER_VECTOR_CLONES
void EncodeNf4Blocks(const float* values, int64_t blocks, uint8_t* codes, float* absmax) {
  for (int64_t block = 0; block < blocks; ++block) {
    const float* x = values + block * kBlock;
    const float max = std::bit_cast<float>(MaxAbsBits(x, kBlock));
    const float inverse = 1.0f / std::max(max, kSmallestDivisor);
    uint8_t unpacked[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      unpacked[i] = static_cast<uint8_t>(Nf4Code(x[i] * inverse));
    }
    PackNibbles(unpacked, kBlock, codes + block * kBlock / 2);
    absmax[block] = max;
  }
}

float EncodeNf4Tail(const float* values, int64_t count, uint8_t* codes) {
  // In bitsandbytes the last, short block differs from the others in two ways: it divides by the
  // absmax instead of multiplying by its inverse, and it stores the absmax after the bound from
  // below, so a tail of zeros has absmax 1e-38. The codes decode to 0 all the same.
  const float max = std::max(std::bit_cast<float>(MaxAbsBits(values, count)), kSmallestDivisor);
  uint8_t unpacked[kBlock];
  std::fill(unpacked, unpacked + kBlock, static_cast<uint8_t>(Nf4Code(0)));  // An odd count's pad.
  for (int64_t i = 0; i < count; ++i) unpacked[i] = static_cast<uint8_t>(Nf4Code(values[i] / max));
  PackNibbles(unpacked, count + count % 2, codes);
  return max;
}

QPRUNER_VECTOR_CLONES
void DecodeNf4Blocks(const uint8_t* codes, const float* absmax, int64_t count, float* values) {
  for (int64_t first = 0, block = 0; first < count; first += kBlock, ++block) {
    const uint8_t* from = codes + first / 2;
    const int64_t size = std::min(kBlock, count - first);
    // One multiplication for each code instead of each weight, to the same bits.
    float scaled[16];
    for (int i = 0; i < 16; ++i) scaled[i] = kNf4Table[i] * absmax[block];
    for (int64_t i = 0; i < size; ++i) values[first + i] = scaled[Nibble(from, i)];
  }
}

QPRUNER_VECTOR_CLONES
float EncodeInt8Row(const float* values, int64_t count, int8_t* codes) {
  const float max = std::bit_cast<float>(MaxAbsBits(values, count));
  // As PyTorch divides a number by a tensor: the inverse first, which rounds twice. A row of zeros
  // would give 0 * infinity, which bitsandbytes' conversion to int8 makes 0.
  const float scale = max > 0 ? (1.0f / max) * 127.0f : 0.0f;
  for (int64_t i = 0; i < count; ++i)
    codes[i] = static_cast<int8_t>(RoundHalfEven(values[i] * scale));
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
Int4Range RangeOf(const float* values, int64_t count) {
  float low = 0;
  float high = 0;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  // Divided one by one: high - low may not be finite.
  return {low, high / 15 - low / 15};
}

int Int4ZeroPoint(const Int4Range& range, float scale) {
  // A range so small that the step is no longer representable is stored as zeros.
  if (!(scale > 0)) return 0;
  return std::clamp(RoundHalfEven(std::min(-range.low / scale, 15.0f)), 0, 15);
}

QPRUNER_VECTOR_CLONES
void EncodeInt4Group(const float* values, int64_t count, float scale, int zero_point,
                     uint8_t* codes) {
  constexpr int64_t kLargestGroup = 128;
  uint8_t unpacked[kLargestGroup + 1] = {};
  if (scale > 0) {
    for (int64_t i = 0; i < count; ++i) {
      // Within the range of codes first, so that the rounding below is in its domain.
      const float position = std::clamp(values[i] / scale, -16.0f, 16.0f);
      const int32_t code = RoundHalfEven(position) + zero_point;
      unpacked[i] = static_cast<uint8_t>(std::min(std::max(code, 0), 15));
    }
  }
  PackNibbles(unpacked, count + count % 2, codes);
}

QPRUNER_VECTOR_CLONES
void DecodeInt4Group(const uint8_t* codes, int64_t count, float scale, int zero_point,
                     float* values) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(Nibble(codes, i) - zero_point) * scale;
  }
}

}  // namespace qpruner::engine
