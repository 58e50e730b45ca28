#include "worker/engine/quantize/bit_packing.h"

#include <algorithm>
#include <cstring>

#include "worker/engine/vector_clones.h"

namespace qpruner::engine {
namespace {

// Eight codes are `kBits` whole bytes.
template <int kBits>
QPRUNER_INLINE void Pack(const uint8_t* codes, int64_t count, uint8_t* packed) {
  for (; count >= 8; count -= 8, codes += 8, packed += kBits) {
    uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word |= uint64_t{codes[i]} << (i * kBits);
    for (int i = 0; i < kBits; ++i) packed[i] = static_cast<uint8_t>(word >> (8 * i));
  }
  uint64_t word = 0;
  for (int i = 0; i < count; ++i) word |= uint64_t{codes[i]} << (i * kBits);
  for (int i = 0; i < PackedCodeBytes(count, kBits); ++i) {
    packed[i] = static_cast<uint8_t>(word >> (8 * i));
  }
}

template <int kBits>
QPRUNER_INLINE void Unpack(const uint8_t* packed, int64_t count, uint8_t* codes) {
  constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;
  for (; count >= 8; count -= 8, codes += 8, packed += kBits) {
    uint64_t word = 0;
    for (int i = 0; i < kBits; ++i) word |= uint64_t{packed[i]} << (8 * i);
    for (int i = 0; i < 8; ++i) codes[i] = static_cast<uint8_t>(word >> (i * kBits) & kMask);
  }
  uint64_t word = 0;
  for (int i = 0; i < PackedCodeBytes(count, kBits); ++i) word |= uint64_t{packed[i]} << (8 * i);
  for (int i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(word >> (i * kBits) & kMask);
}

}  // namespace

QPRUNER_VECTOR_CLONES
void PackBits(const uint8_t* codes, int64_t count, int bits, uint8_t* packed) {
  switch (bits) {
    case 1:
      return Pack<1>(codes, count, packed);
    case 2:
      return Pack<2>(codes, count, packed);
    case 3:
      return Pack<3>(codes, count, packed);
    case 4:
      // Nibbles never cross a byte: one simple loop.
      for (int64_t i = 0; i < count / 2; ++i) {
        packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
      }
      if (count % 2 != 0) packed[count / 2] = codes[count - 1];
      return;
    case 5:
      return Pack<5>(codes, count, packed);
    case 6:
      return Pack<6>(codes, count, packed);
    case 7:
      return Pack<7>(codes, count, packed);
    default:
      std::memcpy(packed, codes, static_cast<size_t>(count));
  }
}

QPRUNER_VECTOR_CLONES
void UnpackBits(const uint8_t* packed, int64_t count, int bits, uint8_t* codes) {
  switch (bits) {
    case 1:
      return Unpack<1>(packed, count, codes);
    case 2:
      return Unpack<2>(packed, count, codes);
    case 3:
      return Unpack<3>(packed, count, codes);
    case 4:
      for (int64_t i = 0; i < count / 2; ++i) {
        codes[2 * i] = packed[i] & 0xF;
        codes[2 * i + 1] = packed[i] >> 4;
      }
      if (count % 2 != 0) codes[count - 1] = packed[count / 2] & 0xF;
      return;
    case 5:
      return Unpack<5>(packed, count, codes);
    case 6:
      return Unpack<6>(packed, count, codes);
    case 7:
      return Unpack<7>(packed, count, codes);
    default:
      std::memcpy(codes, packed, static_cast<size_t>(count));
  }
}

QPRUNER_VECTOR_CLONES
void PackNibbles(const uint8_t* codes, int64_t count, uint8_t padding, uint8_t* packed) {
  for (int64_t i = 0; i < count / 2; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
  if (count % 2 != 0) packed[count / 2] = static_cast<uint8_t>(codes[count - 1] << 4 | padding);
}

QPRUNER_VECTOR_CLONES
void UnpackNibbles(const uint8_t* packed, int64_t count, uint8_t* codes) {
  for (int64_t i = 0; i < count / 2; ++i) {
    codes[2 * i] = packed[i] >> 4;
    codes[2 * i + 1] = packed[i] & 0xF;
  }
  if (count % 2 != 0) codes[count - 1] = packed[count / 2] >> 4;
}

}  // namespace qpruner::engine
