// Codes of a few bits each, as stored in bytes. No LibTorch here.
//
// Two layouts, each as the software that reads it has them:
//   little-endian bit stream  code i in bits [i b, (i + 1) b), bit 0 the lowest of byte 0: integers
//                             (compressed-tensors' int32 words are the same bytes), NF2 and NF3
//   high nibble first         two 4-bit codes a byte, the even one in the high nibble: NF4 and FP4
//                             (bitsandbytes)
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_BIT_PACKING_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_BIT_PACKING_H_

#include <cstdint>

namespace qpruner::engine {

// Bytes of `count` codes of `bits` bits.
constexpr int64_t PackedCodeBytes(int64_t count, int bits) { return (count * bits + 7) / 8; }

// `count` codes below 2^bits, 1 <= bits <= 8, into PackedCodeBytes; unused high bits are 0.
void PackBits(const uint8_t* codes, int64_t count, int bits, uint8_t* packed);
void UnpackBits(const uint8_t* packed, int64_t count, int bits, uint8_t* codes);

// `count` 4-bit codes into ceil(count / 2) bytes; an odd count's last low nibble is `padding`.
void PackNibbles(const uint8_t* codes, int64_t count, uint8_t padding, uint8_t* packed);
void UnpackNibbles(const uint8_t* packed, int64_t count, uint8_t* codes);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_BIT_PACKING_H_
