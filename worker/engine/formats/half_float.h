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

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_HALF_FLOAT_H_
