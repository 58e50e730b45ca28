// float16 and bfloat16 bits as float32 and back, without LibTorch.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_HALF_FLOAT_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_HALF_FLOAT_H_

#include <bit>
#include <cstdint>

namespace qpruner::engine {

// Exact.
inline float FloatFromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Exact; infinities and NaNs stay what they are.
inline float FloatFromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t rest = bits & 0x7FFFu;
  if (rest >= 0x7C00u) return std::bit_cast<float>(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  // The exponent is rebiased by a multiplication, which also gives subnormals their leading bit.
  const float magnitude = std::bit_cast<float>(rest << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Rounds to nearest, ties to even. NaNs become quiet.
inline uint16_t Bf16FromFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

// Rounds to nearest, ties to even; beyond the largest value to infinity. NaNs become quiet.
inline uint16_t F16FromFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) {
    return static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
  }
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // From 2^16 on.
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 makes the float unit round at 2^-24, where the last bit is.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_HALF_FLOAT_H_
