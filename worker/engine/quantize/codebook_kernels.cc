#include "worker/engine/quantize/codebook_kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "worker/engine/quantize/codebooks.h"
#include "worker/engine/quantize/float_kernels.h"
#include "worker/engine/vector_clones.h"

namespace qpruner::engine {
namespace {

// The absmax is never taken below this in a division, so that a block of zeros does not divide by
// zero. (It is subnormal in float32, as in bitsandbytes.)
constexpr float kSmallestDivisor = 1e-38f;

// --- bitsandbytes: bounds halfway between neighbours ---

// Sum first, then half, each rounded to float32.
template <size_t kSize>
constexpr std::array<float, kSize - 1> Midpoints(const std::array<float, kSize>& ascending) {
  std::array<float, kSize - 1> bounds{};
  for (size_t i = 0; i + 1 < kSize; ++i) bounds[i] = (ascending[i] + ascending[i + 1]) / 2;
  return bounds;
}

// FP4's codes by growing value. bitsandbytes sorts its table, which holds 0 twice: exact zeros get
// code 0, and what lies above zero but below the first bound code 8 (minus zero).
constexpr std::array<uint8_t, 16> kFp4Order = {11, 10, 13, 12, 15, 14, 9, 0,
                                               8,  1,  6,  7,  4,  5,  2, 3};
constexpr std::array<float, 16> Fp4Ascending() {
  std::array<float, 16> values{};
  for (size_t i = 0; i < values.size(); ++i) values[i] = kFp4Values[kFp4Order[i]];
  return values;
}

constexpr std::array<float, 15> kNf4Bounds = Midpoints(kNf4Values);
constexpr std::array<float, 15> kFp4Bounds = Midpoints(Fp4Ascending());

// The number of bounds below `x`: a value on a bound goes down.
template <const std::array<float, 15>& kBounds>
QPRUNER_INLINE uint8_t BoundsBelow(float x) {
  int32_t count = 0;
  for (float bound : kBounds) count += x > bound;
  return static_cast<uint8_t>(count);
}

template <const std::array<float, 15>& kBounds>
QPRUNER_INLINE void EncodeByBounds(const float* values, int64_t count, uint8_t* codes,
                                   float* absmax) {
  for (; count >= kCodebookBlock; count -= kCodebookBlock) {
    *absmax = MaxAbs(values, kCodebookBlock);
    const float inverse = 1.0f / std::max(*absmax, kSmallestDivisor);
    for (int64_t i = 0; i < kCodebookBlock; ++i) {
      codes[i] = BoundsBelow<kBounds>(values[i] * inverse);
    }
    values += kCodebookBlock;
    codes += kCodebookBlock;
    ++absmax;
  }
  if (count == 0) return;
  *absmax = std::max(MaxAbs(values, count), kSmallestDivisor);
  for (int64_t i = 0; i < count; ++i) codes[i] = BoundsBelow<kBounds>(values[i] / *absmax);
}

QPRUNER_VECTOR_CLONES
void EncodeNf4(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  EncodeByBounds<kNf4Bounds>(values, count, codes, absmax);
}

QPRUNER_VECTOR_CLONES
void EncodeFp4(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  EncodeByBounds<kFp4Bounds>(values, count, codes, absmax);
  for (int64_t i = 0; i < count; ++i) codes[i] = kFp4Order[codes[i]];
}

// --- PEFT: the smallest distance as float32 computes it ---

// `kSize` small: all distances, vectorized over the block.
template <size_t kSize>
QPRUNER_INLINE void EncodeByDistance(const std::array<float, kSize>& table, const float* values,
                                     int64_t count, uint8_t* codes, float* absmax) {
  for (; count > 0; count -= kCodebookBlock) {
    const int64_t size = std::min(count, kCodebookBlock);
    *absmax = MaxAbs(values, size);
    const float divisor = std::max(*absmax, kSmallestDivisor);
    float x[kCodebookBlock];
    float best[kCodebookBlock];
    int32_t code[kCodebookBlock];
    for (int64_t i = 0; i < size; ++i) {
      x[i] = values[i] / divisor;
      best[i] = std::fabs(x[i] - table[0]);
      code[i] = 0;
    }
    for (size_t c = 1; c < kSize; ++c) {
      for (int64_t i = 0; i < size; ++i) {
        const float distance = std::fabs(x[i] - table[c]);
        code[i] = distance < best[i] ? static_cast<int32_t>(c) : code[i];
        best[i] = std::min(distance, best[i]);
      }
    }
    for (int64_t i = 0; i < size; ++i) codes[i] = static_cast<uint8_t>(code[i]);
    values += size;
    codes += size;
    ++absmax;
  }
}

QPRUNER_VECTOR_CLONES
void EncodeNf2(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  EncodeByDistance(kNf2Values, values, count, codes, absmax);
}

QPRUNER_VECTOR_CLONES
void EncodeNf3(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  EncodeByDistance(kNf3Values, values, count, codes, absmax);
}

// For NF8: equal cells of [-1, 1], each with the last code whose value lies at or below it.
constexpr int kNf8Cells = 2048;
const std::array<uint8_t, kNf8Cells + 1> kNf8Start = [] {
  std::array<uint8_t, kNf8Cells + 1> start{};
  for (int cell = 0; cell <= kNf8Cells; ++cell) {
    // One cell lower, so that no rounding of the cell's number can start too high.
    const float low = (static_cast<float>(cell) - 1) * (2.0f / kNf8Cells) - 1;
    const auto above = std::upper_bound(kNf8Values.begin(), kNf8Values.end(), low);
    start[static_cast<size_t>(cell)] =
        static_cast<uint8_t>(std::max<ptrdiff_t>(above - kNf8Values.begin() - 1, 0));
  }
  return start;
}();

uint8_t NearestNf8(float x) {
  const int cell = static_cast<int>((x + 1) * (kNf8Cells / 2));
  size_t code = kNf8Start[static_cast<size_t>(std::clamp(cell, 0, kNf8Cells))];
  // Distances fall, then rise: the first smallest is where the next one is no longer smaller.
  while (code + 1 < kNf8Values.size() &&
         std::fabs(x - kNf8Values[code + 1]) < std::fabs(x - kNf8Values[code])) {
    ++code;
  }
  return static_cast<uint8_t>(code);
}

void EncodeNf8(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  for (; count > 0; count -= kCodebookBlock) {
    const int64_t size = std::min(count, kCodebookBlock);
    *absmax = MaxAbs(values, size);
    const float divisor = std::max(*absmax, kSmallestDivisor);
    for (int64_t i = 0; i < size; ++i) codes[i] = NearestNf8(values[i] / divisor);
    values += size;
    codes += size;
    ++absmax;
  }
}

template <size_t kSize>
QPRUNER_INLINE void Decode(const std::array<float, kSize>& table, const uint8_t* codes,
                           const float* absmax, int64_t count, float* values) {
  for (; count > 0; count -= kCodebookBlock) {
    const int64_t size = std::min(count, kCodebookBlock);
    // One multiplication for each code instead of each weight, to the same bits.
    if constexpr (kSize <= kCodebookBlock) {
      float scaled[kSize];
      for (size_t i = 0; i < kSize; ++i) scaled[i] = table[i] * *absmax;
      for (int64_t i = 0; i < size; ++i) values[i] = scaled[codes[i]];
    } else {
      for (int64_t i = 0; i < size; ++i) values[i] = table[codes[i]] * *absmax;
    }
    values += size;
    codes += size;
    ++absmax;
  }
}

}  // namespace

int CodebookBits(Codebook codebook) {
  switch (codebook) {
    case Codebook::kNf2:
      return 2;
    case Codebook::kNf3:
      return 3;
    case Codebook::kNf4:
    case Codebook::kFp4:
      return 4;
    case Codebook::kNf8:
      return 8;
  }
  return 0;
}

const float* CodebookValues(Codebook codebook) {
  switch (codebook) {
    case Codebook::kNf2:
      return kNf2Values.data();
    case Codebook::kNf3:
      return kNf3Values.data();
    case Codebook::kNf4:
      return kNf4Values.data();
    case Codebook::kNf8:
      return kNf8Values.data();
    case Codebook::kFp4:
      return kFp4Values.data();
  }
  return nullptr;
}

void EncodeCodebook(Codebook codebook, const float* values, int64_t count, uint8_t* codes,
                    float* absmax) {
  switch (codebook) {
    case Codebook::kNf2:
      return EncodeNf2(values, count, codes, absmax);
    case Codebook::kNf3:
      return EncodeNf3(values, count, codes, absmax);
    case Codebook::kNf4:
      return EncodeNf4(values, count, codes, absmax);
    case Codebook::kNf8:
      return EncodeNf8(values, count, codes, absmax);
    case Codebook::kFp4:
      return EncodeFp4(values, count, codes, absmax);
  }
}

QPRUNER_VECTOR_CLONES
void DecodeCodebook(Codebook codebook, const uint8_t* codes, const float* absmax, int64_t count,
                    float* values) {
  switch (codebook) {
    case Codebook::kNf2:
      return Decode(kNf2Values, codes, absmax, count, values);
    case Codebook::kNf3:
      return Decode(kNf3Values, codes, absmax, count, values);
    case Codebook::kNf4:
      return Decode(kNf4Values, codes, absmax, count, values);
    case Codebook::kNf8:
      return Decode(kNf8Values, codes, absmax, count, values);
    case Codebook::kFp4:
      return Decode(kFp4Values, codes, absmax, count, values);
  }
}

void EncodeNestedAbsmax(const float* absmax, int64_t count, float offset, uint8_t* codes,
                        float* nested_absmax) {
  static const std::array<float, 255> kBounds = Midpoints(kDynamicMap);
  for (; count > 0; count -= kNestedBlock) {
    const int64_t size = std::min(count, kNestedBlock);
    float centred[kNestedBlock];
    for (int64_t i = 0; i < size; ++i) centred[i] = absmax[i] - offset;
    const float max = MaxAbs(centred, size);
    // As full and short blocks of NF4.
    const bool full = size == kNestedBlock;
    const float divisor = std::max(max, kSmallestDivisor);
    const float inverse = 1.0f / divisor;
    *nested_absmax = full ? max : divisor;
    for (int64_t i = 0; i < size; ++i) {
      const float x = full ? centred[i] * inverse : centred[i] / divisor;
      codes[i] = static_cast<uint8_t>(std::lower_bound(kBounds.begin(), kBounds.end(), x) -
                                      kBounds.begin());
    }
    absmax += size;
    codes += size;
    ++nested_absmax;
  }
}

void DecodeNestedAbsmax(const uint8_t* codes, const float* nested_absmax, float offset,
                        int64_t count, float* absmax) {
  for (int64_t i = 0; i < count; ++i) {
    const float product = kDynamicMap[codes[i]] * nested_absmax[i / kNestedBlock];
    absmax[i] = product + offset;
  }
}

}  // namespace qpruner::engine
