// Compiled with -ffp-contract=off: a fused multiply-add would round once where the reference rounds
// twice.
#include "worker/engine/formats/ggml_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "worker/engine/formats/half_float.h"
#include "worker/engine/vector_clones.h"

namespace qpruner::engine {
namespace {

void StoreU16(uint16_t value, char* out) { std::memcpy(out, &value, sizeof(value)); }
void StoreScale(float value, char* out) { StoreU16(F16FromFloat(value), out); }

// Of 32 values, taken in pairs so that it needs no order: 16, 8, 4, 2, 1 comparisons at a time.
template <typename Choose>
QPRUNER_INLINE float Reduced(const float* values, Choose choose) {
  float best[16];
  for (int i = 0; i < 16; ++i) best[i] = choose(values[i], values[i + 16]);
  for (int i = 0; i < 8; ++i) best[i] = choose(best[i], best[i + 8]);
  for (int i = 0; i < 4; ++i) best[i] = choose(best[i], best[i + 4]);
  for (int i = 0; i < 2; ++i) best[i] = choose(best[i], best[i + 2]);
  return choose(best[0], best[1]);
}

QPRUNER_INLINE float Magnitude(const float* values) {
  return Reduced(values, [](float a, float b) {
    const float x = std::fabs(a), y = std::fabs(b);
    return x < y ? y : x;
  });
}

// The value of largest magnitude, with its sign; the first of equals.
QPRUNER_INLINE float SignedMaximum(const float* values) {
  const float magnitude = Magnitude(values);
  if (magnitude == 0) return 0;
  int first = 0;
  while (first < 31 && std::fabs(values[first]) != magnitude) ++first;
  return values[first];
}

QPRUNER_INLINE float Minimum(const float* values) {
  const float minimum = Reduced(values, [](float a, float b) { return b < a ? b : a; });
  // Zeros are stored with their sign: the first one's.
  return minimum == 0 ? *std::find(values, values + 32, 0.0f) : minimum;
}

QPRUNER_INLINE float Maximum(const float* values) {
  return Reduced(values, [](float a, float b) { return a < b ? b : a; });
}

// 0 for 0: a block of equal values has no step.
QPRUNER_INLINE float Inverse(float value) { return value == 0 ? 0 : 1 / value; }

// A positive value, truncated and bounded.
QPRUNER_INLINE int Truncated(float value, int max) {
  return std::min(max, static_cast<int>(value));
}

// std::round without its call, for |value| < 2^22. Half less one unit in the last place: with a
// half, the float below 0.5 would round to 1.
QPRUNER_INLINE int Rounded(float value) {
  constexpr float kBelowHalf = 0x1.fffffep-2f;
  return static_cast<int>(value + std::copysign(kBelowHalf, value));
}

// The codes of 32 weights as nibbles: weight i low, weight i + 16 high; and the fifth bits, weight
// i's at bit i.
QPRUNER_INLINE void StoreNibbles(const int* codes, char* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<char>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}
QPRUNER_INLINE void StoreFifthBits(const int* codes, char* out) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
  std::memcpy(out, &bits, sizeof(bits));
}

QPRUNER_INLINE void BlockQ8_0(const float* values, char* out) {
  const float scale = Magnitude(values) / 127;
  const float inverse = Inverse(scale);
  StoreScale(scale, out);
  for (int i = 0; i < 32; ++i) out[2 + i] = static_cast<char>(Rounded(values[i] * inverse));
}

// Symmetric types of `kBits`: the value of largest magnitude gets the code 0, that is -2^(kBits -
// 1) steps.
template <int kBits>
QPRUNER_INLINE void BlockSymmetric(const float* values, char* out) {
  constexpr int kHalf = 1 << (kBits - 1);
  const float scale = SignedMaximum(values) / -kHalf;
  const float inverse = Inverse(scale);
  int codes[32];
  for (int i = 0; i < 32; ++i) {
    codes[i] = Truncated(values[i] * inverse + (kHalf + 0.5f), 2 * kHalf - 1);
  }
  StoreScale(scale, out);
  if (kBits == 5) StoreFifthBits(codes, out + 2);
  StoreNibbles(codes, out + (kBits == 5 ? 6 : 2));
}

// Asymmetric types of `kBits`: the smallest value gets the code 0, the largest the last one.
template <int kBits>
QPRUNER_INLINE void BlockAsymmetric(const float* values, char* out) {
  constexpr int kLast = (1 << kBits) - 1;
  const float minimum = Minimum(values);
  const float scale = (Maximum(values) - minimum) / kLast;
  const float inverse = Inverse(scale);
  int codes[32];
  for (int i = 0; i < 32; ++i) {
    codes[i] = Truncated((values[i] - minimum) * inverse + 0.5f, kLast);
  }
  StoreScale(scale, out);
  StoreScale(minimum, out + 2);
  if (kBits == 5) StoreFifthBits(codes, out + 4);
  StoreNibbles(codes, out + (kBits == 5 ? 8 : 4));
}

template <void (*kBlock)(const float*, char*)>
QPRUNER_INLINE void Blocks(const GgmlTypeInfo& info, const float* values, int64_t count,
                           char* out) {
  for (int64_t i = 0; i < count / info.block_size; ++i) {
    kBlock(values + i * info.block_size, out + i * info.block_bytes);
  }
}

}  // namespace

// In ggml_k_quants.cc.
void QuantizeBlockQ4_K(const float* values, char* out);
void QuantizeBlockQ6_K(const float* values, char* out);

bool CanQuantizeGgml(GgmlType type) { return type != GgmlType::kQ5_K; }

QPRUNER_VECTOR_CLONES
void QuantizeGgml(GgmlType type, const float* values, int64_t count, char* out) {
  const GgmlTypeInfo& info = InfoOf(type);
  switch (type) {
    case GgmlType::kF32:
      std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
      return;
    case GgmlType::kF16:
      for (int64_t i = 0; i < count; ++i) StoreU16(F16FromFloat(values[i]), out + 2 * i);
      return;
    case GgmlType::kBF16:
      for (int64_t i = 0; i < count; ++i) StoreU16(Bf16FromFloat(values[i]), out + 2 * i);
      return;
    case GgmlType::kQ8_0:
      return Blocks<BlockQ8_0>(info, values, count, out);
    case GgmlType::kQ4_0:
      return Blocks<BlockSymmetric<4>>(info, values, count, out);
    case GgmlType::kQ4_1:
      return Blocks<BlockAsymmetric<4>>(info, values, count, out);
    case GgmlType::kQ5_0:
      return Blocks<BlockSymmetric<5>>(info, values, count, out);
    case GgmlType::kQ5_1:
      return Blocks<BlockAsymmetric<5>>(info, values, count, out);
    case GgmlType::kQ4_K:
      return Blocks<QuantizeBlockQ4_K>(info, values, count, out);
    case GgmlType::kQ6_K:
      return Blocks<QuantizeBlockQ6_K>(info, values, count, out);
    case GgmlType::kQ5_K:
      return;  // CanQuantizeGgml says so.
  }
}

}  // namespace qpruner::engine
