// The values that codes of the codebook formats stand for, as float32. No LibTorch here.
//
//   NF2, NF3, NF8  quantiles of the normal distribution, as PEFT's NFQuantizer (0.9.0) makes them:
//                  create_normal_map(offset=0.9677083)
//   NF4, FP4       bitsandbytes' tables; FP4's codes are a sign bit and a magnitude, not in order
//   dynamic map    bitsandbytes' signed 8-bit type with a dynamic exponent (Dettmers 2015,
//                  arXiv 1511.04561), which stores the absmax values of double quantization
//
// tests/compat/quantize_golden.py and normal_float_golden.py make them again from those libraries.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOKS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOKS_H_

#include <array>

namespace qpruner::engine {

inline constexpr std::array<float, 4> kNf2Values = {-1.0f, 0.0f, 0.337915242f, 1.0f};
inline constexpr std::array<float, 8> kNf3Values = {
    -1.0f, -0.478629202f, -0.217141792f, 0.0f, 0.160930201f, 0.337915242f, 0.562617004f, 1.0f,
};
inline constexpr std::array<float, 16> kNf4Values = {
    -1.0f,         -0.696192801f, -0.525073051f, -0.394917488f, -0.284441382f, -0.184773430f,
    -0.091050036f, 0.0f,          0.0795802996f, 0.160930201f,  0.246112302f,  0.337915242f,
    0.440709829f,  0.562617004f,  0.722956836f,  1.0f,
};
extern const std::array<float, 256> kNf8Values;
inline constexpr std::array<float, 16> kFp4Values = {
    0.0f, 0.0052083335f,  0.6666667f,  1.0f,  0.33333334f,  0.5f,  0.16666667f,  0.25f,
    0.0f, -0.0052083335f, -0.6666667f, -1.0f, -0.33333334f, -0.5f, -0.16666667f, -0.25f,
};
extern const std::array<float, 256> kDynamicMap;  // Ascending.

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOKS_H_
