// The k-quant encoders, after the reference in llama.cpp (MIT licence), ggml/src/ggml-quants.c. The
// order of the floating-point operations is the reference's, so that equal inputs give equal bytes.
// Compiled with -ffp-contract=off.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "worker/engine/formats/half_float.h"

namespace qpruner::engine {

void QuantizeBlockQ4_K(const float* values, char* out);
void QuantizeBlockQ6_K(const float* values, char* out);

namespace {

constexpr int kBlock = 256;
// Sub-blocks whose largest magnitude is below this count as zero.
constexpr float kZero = 1e-15f;

// Nearest integer, ties to even, for |value| < 2^22: adding 1.5 * 2^23 leaves it in the last bits.
int Nearest(float value) {
  const auto bits = std::bit_cast<int32_t>(value + 12582912.0f);
  return (bits & 0x007FFFFF) - 0x00400000;
}

void StoreScale(float value, char* out) {
  const uint16_t bits = F16FromFloat(value);
  std::memcpy(out, &bits, sizeof(bits));
}
float Stored(const char* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return FloatFromF16(bits);
}

// A scale and a minimum (both not negative) for 32 weights with codes 0 to 15, so that
// scale * code - minimum is near: the best by weighted squared error out of 21 grids, each with
// scale and minimum refitted by least squares to the codes it gives. Writes the best one's codes.
struct Affine {
  float scale;
  float minimum;
};
Affine FitAffine(const float* x, int* best_codes) {
  constexpr int kCount = 32, kLast = 15;
  float weights[kCount];
  float sum_squares = 0;
  for (int i = 0; i < kCount; ++i) sum_squares += x[i] * x[i];
  const float root_mean_square = std::sqrt(sum_squares / kCount);
  for (int i = 0; i < kCount; ++i) weights[i] = root_mean_square + std::fabs(x[i]);

  float smallest = x[0], largest = x[0];
  float sum_w = weights[0], sum_x = sum_w * x[0];
  for (int i = 1; i < kCount; ++i) {
    smallest = std::min(smallest, x[i]);
    largest = std::max(largest, x[i]);
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  if (smallest > 0) smallest = 0;
  std::fill_n(best_codes, kCount, 0);
  if (largest == smallest) return {0, -smallest};

  const auto code_of = [&](float inverse, float value) {
    return std::clamp(Nearest(inverse * (value - smallest)), 0, kLast);
  };
  // `smallest` stays the grid's origin as long as no refit is better, and moves with the best one.
  const float range_inverse = kLast / (largest - smallest);
  float scale = 1 / range_inverse;
  float best_error = 0;
  for (int i = 0; i < kCount; ++i) {
    best_codes[i] = code_of(range_inverse, x[i]);
    const auto code = static_cast<float>(best_codes[i]);
    const float difference = scale * code + smallest - x[i];
    best_error += weights[i] * (difference * difference);
  }
  for (int step = 0; step <= 20; ++step) {
    const float inverse = (-1.0f + 0.1f * static_cast<float>(step) + kLast) / (largest - smallest);
    int codes[kCount];
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < kCount; ++i) {
      codes[i] = code_of(inverse, x[i]);
      const auto code = static_cast<float>(codes[i]);
      sum_l += weights[i] * code;
      sum_l2 += weights[i] * code * code;
      sum_xl += weights[i] * code * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) continue;
    float fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (fitted_minimum > 0) {
      fitted_minimum = 0;
      fitted_scale = sum_xl / sum_l2;
    }
    float error = 0;
    for (int i = 0; i < kCount; ++i) {
      const float difference = fitted_scale * static_cast<float>(codes[i]) + fitted_minimum - x[i];
      error += weights[i] * (difference * difference);
    }
    if (error < best_error) {
      best_error = error;
      scale = fitted_scale;
      smallest = fitted_minimum;
      std::copy_n(codes, kCount, best_codes);
    }
  }
  return {scale, -smallest};
}

// A scale of either sign for 16 weights with codes -32 to 31, the best by squared error weighted
// with the squared weight out of 19 grids. Writes the best one's codes, counted from -32; for
// weights of zero, zeros.
float FitSymmetric(const float* x, int* best_codes) {
  constexpr int kCount = 16, kMax = 32;
  float largest = 0, magnitude = 0;
  for (int i = 0; i < kCount; ++i) {
    if (std::fabs(x[i]) > magnitude) {
      magnitude = std::fabs(x[i]);
      largest = x[i];
    }
  }
  std::fill_n(best_codes, kCount, 0);
  if (magnitude < kZero) return 0;
  struct Sums {
    float xl = 0, l2 = 0;
  };
  const auto code_of = [&](float inverse, int i) {
    return std::clamp(Nearest(inverse * x[i]), -kMax, kMax - 1);
  };
  const auto keep = [&](float inverse) {
    for (int i = 0; i < kCount; ++i) best_codes[i] = code_of(inverse, i) + kMax;
  };
  const auto sums_of = [&](float inverse) {
    Sums sums;
    for (int i = 0; i < kCount; ++i) {
      const auto code = static_cast<float>(code_of(inverse, i));
      const float weight = x[i] * x[i];
      sums.xl += weight * x[i] * code;
      sums.l2 += weight * code * code;
    }
    return sums;
  };
  const Sums first = sums_of(-kMax / largest);
  keep(-kMax / largest);
  float scale = first.l2 != 0 ? first.xl / first.l2 : 0;
  float best = scale * first.xl;
  for (int step = -9; step <= 9; ++step) {
    if (step == 0) continue;
    const float inverse = -(kMax + 0.1f * static_cast<float>(step)) / largest;
    const Sums sums = sums_of(inverse);
    if (sums.l2 > 0 && sums.xl * sums.xl > best * sums.l2) {
      keep(inverse);
      scale = sums.xl / sums.l2;
      best = scale * sums.xl;
    }
  }
  return scale;
}

}  // namespace

// In both, the codes are chosen again for the scales as stored; those of the fit stay where the
// stored scale is 0 and they mean nothing, as in the reference.
void QuantizeBlockQ4_K(const float* values, char* out) {
  int codes[kBlock];
  Affine fits[8];
  float largest_scale = 0, largest_minimum = 0;
  for (int j = 0; j < 8; ++j) {
    fits[j] = FitAffine(values + 32 * j, codes + 32 * j);
    largest_scale = std::max(largest_scale, fits[j].scale);
    largest_minimum = std::max(largest_minimum, fits[j].minimum);
  }
  const float scale_inverse = largest_scale > 0 ? 63.0f / largest_scale : 0.0f;
  const float minimum_inverse = largest_minimum > 0 ? 63.0f / largest_minimum : 0.0f;
  StoreScale(largest_scale / 63.0f, out);
  StoreScale(largest_minimum / 63.0f, out + 2);
  const float super_scale = Stored(out), super_minimum = Stored(out + 2);

  auto* packed = reinterpret_cast<uint8_t*>(out + 4);
  std::memset(packed, 0, 12);
  for (int j = 0; j < 8; ++j) {
    const int scale =
        std::min<int>(63, static_cast<uint8_t>(Nearest(scale_inverse * fits[j].scale)));
    const int minimum =
        std::min<int>(63, static_cast<uint8_t>(Nearest(minimum_inverse * fits[j].minimum)));
    if (j < 4) {
      packed[j] = static_cast<uint8_t>(packed[j] | scale);
      packed[j + 4] = static_cast<uint8_t>(packed[j + 4] | minimum);
    } else {
      packed[j + 4] = static_cast<uint8_t>((scale & 15) | (minimum & 15) << 4);
      packed[j - 4] = static_cast<uint8_t>(packed[j - 4] | (scale >> 4) << 6);
      packed[j] = static_cast<uint8_t>(packed[j] | (minimum >> 4) << 6);
    }
    const float step = super_scale * static_cast<float>(scale);
    if (step == 0) continue;
    const float offset = super_minimum * static_cast<float>(minimum);
    for (int i = 32 * j; i < 32 * j + 32; ++i) {
      codes[i] = std::clamp(Nearest((values[i] + offset) / step), 0, 15);
    }
  }
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      out[16 + 32 * pair + i] =
          static_cast<char>(codes[64 * pair + i] | codes[64 * pair + 32 + i] << 4);
    }
  }
}

void QuantizeBlockQ6_K(const float* values, char* out) {
  int codes[kBlock];
  float scales[16];
  float largest = 0, magnitude = 0;
  for (int j = 0; j < 16; ++j) {
    scales[j] = FitSymmetric(values + 16 * j, codes + 16 * j);
    if (std::fabs(scales[j]) > magnitude) {
      magnitude = std::fabs(scales[j]);
      largest = scales[j];
    }
  }
  std::memset(out, 0, 210);
  if (magnitude < kZero) return;
  const float inverse = -128.0f / largest;
  StoreScale(1 / inverse, out + 208);
  const float super_scale = Stored(out + 208);
  for (int j = 0; j < 16; ++j) {
    const int scale = std::min(127, Nearest(inverse * scales[j]));
    out[192 + j] = static_cast<char>(scale);
    const float step = super_scale * static_cast<float>(scale);
    if (step == 0) continue;
    for (int i = 16 * j; i < 16 * j + 16; ++i) {
      codes[i] = std::clamp(Nearest(values[i] / step), -32, 31) + 32;
    }
  }
  for (int half = 0; half < 2; ++half) {
    const int* from = codes + 128 * half;
    for (int i = 0; i < 32; ++i) {
      out[64 * half + i] = static_cast<char>((from[i] & 15) | (from[i + 64] & 15) << 4);
      out[64 * half + 32 + i] = static_cast<char>((from[i + 32] & 15) | (from[i + 96] & 15) << 4);
      out[128 + 32 * half + i] =
          static_cast<char>(from[i] >> 4 | (from[i + 32] >> 4) << 2 | (from[i + 64] >> 4) << 4 |
                            (from[i + 96] >> 4) << 6);
    }
  }
}

}  // namespace qpruner::engine
