// Compiled with -ffp-contract=off: a fused multiply-add would round once where the reference rounds
// twice.
#include "worker/engine/formats/ggml_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "worker/engine/formats/half_float.h"

namespace qpruner::engine {
namespace {

void StoreU16(uint16_t value, char* out) { std::memcpy(out, &value, sizeof(value)); }
void StoreScale(float value, char* out) { StoreU16(F16FromFloat(value), out); }

// The value of largest magnitude, with its sign; the first of equals.
float SignedMaximum(const float* values, int count) {
  float largest = 0, magnitude = 0;
  for (int i = 0; i < count; ++i) {
    if (std::fabs(values[i]) > magnitude) {
      magnitude = std::fabs(values[i]);
      largest = values[i];
    }
  }
  return largest;
}

// 0 for 0: a block of equal values has no step.
float Inverse(float value) { return value == 0 ? 0 : 1 / value; }

// A positive value, truncated and bounded.
int Truncated(float value, int max) { return std::min(max, static_cast<int>(value)); }

// The codes of 32 weights as nibbles: weight i low, weight i + 16 high; and the fifth bits, weight
// i's at bit i.
void StoreNibbles(const int* codes, char* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<char>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}
void StoreFifthBits(const int* codes, char* out) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
  std::memcpy(out, &bits, sizeof(bits));
}

void BlockQ8_0(const float* values, char* out) {
  const float scale = std::fabs(SignedMaximum(values, 32)) / 127;
  const float inverse = Inverse(scale);
  StoreScale(scale, out);
  for (int i = 0; i < 32; ++i) {
    out[2 + i] = static_cast<char>(static_cast<int>(std::round(values[i] * inverse)));
  }
}

// Symmetric types of `kBits`: the value of largest magnitude gets the code 0, that is -2^(kBits -
// 1) steps.
template <int kBits>
void BlockSymmetric(const float* values, char* out) {
  constexpr int kHalf = 1 << (kBits - 1);
  const float scale = SignedMaximum(values, 32) / -kHalf;
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
void BlockAsymmetric(const float* values, char* out) {
  constexpr int kLast = (1 << kBits) - 1;
  const auto [minimum, maximum] = std::minmax_element(values, values + 32);
  const float scale = (*maximum - *minimum) / kLast;
  const float inverse = Inverse(scale);
  int codes[32];
  for (int i = 0; i < 32; ++i) {
    codes[i] = Truncated((values[i] - *minimum) * inverse + 0.5f, kLast);
  }
  StoreScale(scale, out);
  StoreScale(*minimum, out + 2);
  if (kBits == 5) StoreFifthBits(codes, out + 4);
  StoreNibbles(codes, out + (kBits == 5 ? 8 : 4));
}

template <void (*kBlock)(const float*, char*)>
void Blocks(const GgmlTypeInfo& info, const float* values, int64_t count, char* out) {
  for (int64_t i = 0; i < count / info.block_size; ++i) {
    kBlock(values + i * info.block_size, out + i * info.block_bytes);
  }
}

}  // namespace

// In ggml_k_quants.cc.
void QuantizeBlockQ4_K(const float* values, char* out);
void QuantizeBlockQ6_K(const float* values, char* out);

bool CanQuantizeGgml(GgmlType type) { return type != GgmlType::kQ5_K; }

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
