// The inner loops of the integer formats, on plain float32 arrays of one thread. As
// codebook_kernels.h: finite inputs, no LibTorch, every rounding as written.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_INTEGER_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_INTEGER_KERNELS_H_

#include <cstdint>

namespace qpruner::engine {

// One row of values that float16 can hold: writes `count` codes, returns the absmax.
float EncodeInt8Row(const float* values, int64_t count, int8_t* codes);
void DecodeInt8Row(const int8_t* codes, float absmax, int64_t count, float* values);

// The step between codes of `bits` for a group of values, before it is rounded for storage.
// Symmetric: absmax over half the code range, so that -2^(bits-1) is the only code beyond it.
// Asymmetric: the range from min(low, 0) to max(high, 0) over the number of steps, so that 0 has a
// code. As compressed-tensors' calculate_qparams.
float SymmetricStep(const float* values, int64_t count, int bits);
struct IntegerRange {
  float low;  // <= 0
  float step;
};
IntegerRange AsymmetricRange(const float* values, int64_t count, int bits);

// The code of 0, 0 to 2^bits - 1, for an asymmetric group that is stored with `scale` (range.step
// as rounded for storage). Symmetric groups have 2^(bits-1).
int ZeroPointOf(const IntegerRange& range, float scale, int bits);

// Unsigned codes, w = (code - zero_point) scale. Codes are nearest for the scale given, which is
// the one that is stored: clamp(round(w / scale + zero_point)), halves to even, as
// compressed-tensors' quantize. A scale of 0 (a group so small that its step is not representable)
// gives the code of 0.
void EncodeIntegers(const float* values, int64_t count, float scale, int zero_point, int bits,
                    uint8_t* codes);
void DecodeIntegers(const uint8_t* codes, int64_t count, float scale, int zero_point,
                    float* values);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_INTEGER_KERNELS_H_
