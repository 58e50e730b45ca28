// The inner loops of the storage formats, on plain float32 arrays of one thread. No LibTorch here,
// so that they are compiled alone, with clones for wider vector units.
//
// All inputs are finite. Roundings are those of IEEE float32, one for each operation written: the
// file is compiled without contraction into fused multiply-adds, so all clones give the same bits.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_PACK_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_PACK_KERNELS_H_

#include <cstdint>

namespace qpruner::engine {

// False if any of `count` values is infinite or NaN.
bool AllFinite(const float* values, int64_t count);

// `blocks` full blocks of 64: 32 bytes of codes and one absmax each.
void EncodeNf4Blocks(const float* values, int64_t blocks, uint8_t* codes, float* absmax);
// A shorter last block, 1 <= count < 64: writes ceil(count / 2) bytes, returns the absmax.
float EncodeNf4Tail(const float* values, int64_t count, uint8_t* codes);
// `count` values of consecutive blocks; only the last block may be short.
void DecodeNf4Blocks(const uint8_t* codes, const float* absmax, int64_t count, float* values);

// One row of values that float16 can hold: writes `count` codes, returns the absmax.
float EncodeInt8Row(const float* values, int64_t count, int8_t* codes);
void DecodeInt8Row(const int8_t* codes, float absmax, int64_t count, float* values);

// What an asymmetric 4-bit group spans: from `low` <= 0 in 15 steps, so that 0 has a code.
struct Int4Range {
  float low;
  float step;
};
Int4Range RangeOf(const float* values, int64_t count);
// The code of 0, 0 to 15, for a group stored with `scale` (range.step as rounded for storage).
int Int4ZeroPoint(const Int4Range& range, float scale);
// Writes ceil(count / 2) bytes; an odd last low nibble is 0.
void EncodeInt4Group(const float* values, int64_t count, float scale, int zero_point,
                     uint8_t* codes);
void DecodeInt4Group(const uint8_t* codes, int64_t count, float scale, int zero_point,
                     float* values);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_PACK_KERNELS_H_
