// Compiled with -ffp-contract=off: a fused multiply-add would round once where the reference rounds
// twice.
#include "worker/engine/formats/ggml_dequantize.h"

#include <cstring>

#include "worker/engine/formats/half_float.h"

namespace qpruner::engine {
namespace {

uint16_t LoadU16(const char* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

float LoadScale(const char* bytes) { return FloatFromF16(LoadU16(bytes)); }

const uint8_t* Unsigned(const char* bytes) { return reinterpret_cast<const uint8_t*>(bytes); }

// Each function below writes one block. In all types of 32 weights, byte i of the codes holds
// weight i in its low and weight i + 16 in its high nibble.

void BlockQ8_0(const char* block, float* out) {
  const float scale = LoadScale(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

void BlockQ4_0(const char* block, float* out) {
  const float scale = LoadScale(block);
  const uint8_t* codes = Unsigned(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>((codes[i] & 15) - 8);
    out[i + 16] = scale * static_cast<float>((codes[i] >> 4) - 8);
  }
}

void BlockQ4_1(const char* block, float* out) {
  const float scale = LoadScale(block);
  const float minimum = LoadScale(block + 2);
  const uint8_t* codes = Unsigned(block + 4);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(codes[i] & 15) + minimum;
    out[i + 16] = scale * static_cast<float>(codes[i] >> 4) + minimum;
  }
}

// The fifth bits: bit i belongs to weight i.
uint32_t LoadFifthBits(const char* bytes) {
  uint32_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return bits;
}

void BlockQ5_0(const char* block, float* out) {
  const float scale = LoadScale(block);
  const uint32_t high = LoadFifthBits(block + 2);
  const uint8_t* codes = Unsigned(block + 6);
  for (int i = 0; i < 16; ++i) {
    const int low = (codes[i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int up = (codes[i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    out[i] = scale * static_cast<float>(low - 16);
    out[i + 16] = scale * static_cast<float>(up - 16);
  }
}

void BlockQ5_1(const char* block, float* out) {
  const float scale = LoadScale(block);
  const float minimum = LoadScale(block + 2);
  const uint32_t high = LoadFifthBits(block + 4);
  const uint8_t* codes = Unsigned(block + 8);
  for (int i = 0; i < 16; ++i) {
    const int low = (codes[i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int up = (codes[i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    out[i] = scale * static_cast<float>(low) + minimum;
    out[i + 16] = scale * static_cast<float>(up) + minimum;
  }
}

// The 6-bit scale and minimum of sub-block `i` of 8, out of the 12 bytes of Q4_K and Q5_K: the
// lower four lie in bytes 0-3 (scales) and 4-7 (minima); of the upper four, the low nibbles share
// bytes 8-11 and the top bits fill bytes 0-7.
struct ScaleAndMinimum {
  float scale;
  float minimum;
};
ScaleAndMinimum UnpackScale(const uint8_t* packed, int i) {
  int scale, minimum;
  if (i < 4) {
    scale = packed[i] & 63;
    minimum = packed[i + 4] & 63;
  } else {
    scale = (packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4;
    minimum = packed[i + 4] >> 4 | (packed[i] >> 6) << 4;
  }
  return {static_cast<float>(scale), static_cast<float>(minimum)};
}

void BlockQ4_K(const char* block, float* out) {
  const float super_scale = LoadScale(block);
  const float super_minimum = LoadScale(block + 2);
  const uint8_t* packed = Unsigned(block + 4);
  const uint8_t* codes = Unsigned(block + 16);
  // 32 bytes hold two sub-blocks of 32: the first in the low nibbles.
  for (int i = 0; i < 8; ++i) {
    const ScaleAndMinimum sub = UnpackScale(packed, i);
    const float scale = super_scale * sub.scale;
    const float minimum = super_minimum * sub.minimum;
    const uint8_t* bytes = codes + 32 * (i / 2);
    for (int j = 0; j < 32; ++j) {
      const int code = i % 2 == 0 ? bytes[j] & 15 : bytes[j] >> 4;
      out[32 * i + j] = scale * static_cast<float>(code) - minimum;
    }
  }
}

void BlockQ5_K(const char* block, float* out) {
  const float super_scale = LoadScale(block);
  const float super_minimum = LoadScale(block + 2);
  const uint8_t* packed = Unsigned(block + 4);
  const uint8_t* high = Unsigned(block + 16);  // Bit i of byte j: weight j of sub-block i.
  const uint8_t* codes = Unsigned(block + 48);
  for (int i = 0; i < 8; ++i) {
    const ScaleAndMinimum sub = UnpackScale(packed, i);
    const float scale = super_scale * sub.scale;
    const float minimum = super_minimum * sub.minimum;
    const uint8_t* bytes = codes + 32 * (i / 2);
    for (int j = 0; j < 32; ++j) {
      const int code = (i % 2 == 0 ? bytes[j] & 15 : bytes[j] >> 4) | (high[j] >> i & 1) << 4;
      out[32 * i + j] = scale * static_cast<float>(code) - minimum;
    }
  }
}

void BlockQ6_K(const char* block, float* out) {
  const float super_scale = LoadScale(block + 208);
  // Each half of 128 weights has 64 bytes of low nibbles and 32 bytes of upper bits: weights 0-31
  // and 32-63 are the low nibbles of the first and second 32 bytes, 64-127 the high ones; upper
  // bits 2k and 2k + 1 of byte j belong to weight 32 k + j.
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = Unsigned(block + 64 * half);
    const uint8_t* high = Unsigned(block + 128 + 32 * half);
    const char* scales = block + 192 + 8 * half;
    for (int k = 0; k < 4; ++k) {
      for (int j = 0; j < 32; ++j) {
        const uint8_t byte = low[32 * (k % 2) + j];
        const int code = (k < 2 ? byte & 15 : byte >> 4) | (high[j] >> (2 * k) & 3) << 4;
        const auto sub = static_cast<int8_t>(scales[2 * k + j / 16]);
        const float scale = super_scale * static_cast<float>(sub);
        out[128 * half + 32 * k + j] = scale * static_cast<float>(code - 32);
      }
    }
  }
}

template <void (*kBlock)(const char*, float*)>
void Blocks(const GgmlTypeInfo& info, const char* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count / info.block_size; ++i) {
    kBlock(blocks + i * info.block_bytes, out + i * info.block_size);
  }
}

}  // namespace

void DequantizeGgml(GgmlType type, const char* blocks, int64_t count, float* out) {
  const GgmlTypeInfo& info = InfoOf(type);
  switch (type) {
    case GgmlType::kF32:
      std::memcpy(out, blocks, static_cast<size_t>(count) * sizeof(float));
      return;
    case GgmlType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = FloatFromF16(LoadU16(blocks + 2 * i));
      return;
    case GgmlType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = FloatFromBf16(LoadU16(blocks + 2 * i));
      return;
    case GgmlType::kQ8_0:
      return Blocks<BlockQ8_0>(info, blocks, count, out);
    case GgmlType::kQ4_0:
      return Blocks<BlockQ4_0>(info, blocks, count, out);
    case GgmlType::kQ4_1:
      return Blocks<BlockQ4_1>(info, blocks, count, out);
    case GgmlType::kQ5_0:
      return Blocks<BlockQ5_0>(info, blocks, count, out);
    case GgmlType::kQ5_1:
      return Blocks<BlockQ5_1>(info, blocks, count, out);
    case GgmlType::kQ4_K:
      return Blocks<BlockQ4_K>(info, blocks, count, out);
    case GgmlType::kQ5_K:
      return Blocks<BlockQ5_K>(info, blocks, count, out);
    case GgmlType::kQ6_K:
      return Blocks<BlockQ6_K>(info, blocks, count, out);
  }
}

}  // namespace qpruner::engine
