#include "worker/engine/quantize/codebook_format.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "worker/engine/quantize/bit_packing.h"
#include "worker/engine/quantize/parallel_rows.h"

namespace qpruner::engine {
namespace {

// Blocks whose unpacked codes are held at a time: they stay in the first-level cache.
constexpr int64_t kBlocksAtATime = 64;
constexpr int64_t kStrip = kBlocksAtATime * kCodebookBlock;

// What an odd count's last low nibble holds: the code that bitsandbytes gives a padding 0.
uint8_t PaddingCode(Codebook codebook) { return codebook == Codebook::kNf4 ? 7 : 0; }

void PackCodes(Codebook codebook, const uint8_t* codes, int64_t count, uint8_t* packed) {
  const int bits = CodebookBits(codebook);
  if (bits == 4) {
    PackNibbles(codes, count, PaddingCode(codebook), packed);
  } else {
    PackBits(codes, count, bits, packed);
  }
}

void UnpackCodes(Codebook codebook, const uint8_t* packed, int64_t count, uint8_t* codes) {
  const int bits = CodebookBits(codebook);
  if (bits == 4) {
    UnpackNibbles(packed, count, codes);
  } else {
    UnpackBits(packed, count, bits, codes);
  }
}

// Calls work(first, count) for strips of whole blocks (but for the last one's end).
template <typename Work>
void ForEachStrip(int64_t count, const Work& work) {
  ParallelUnits(CeilDivide(count, kStrip), kStrip, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      work(strip * kStrip, std::min(kStrip, count - strip * kStrip));
    }
  });
}

// The mean in float64, one after the other: the same on every machine and number of threads.
// bitsandbytes' mean in float32 can differ in its last places.
float MeanOf(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return static_cast<float>(sum / static_cast<double>(count));
}

}  // namespace

Codebook CodebookOf(const Format& format) {
  if (format.kind == FormatKind::kFloat4) return Codebook::kFp4;
  TORCH_CHECK_VALUE(format.kind == FormatKind::kNormalFloat,
                    "Not a codebook format: ", FormatName(format));
  switch (format.bits) {
    case 2:
      return Codebook::kNf2;
    case 3:
      return Codebook::kNf3;
    case 4:
      return Codebook::kNf4;
    default:
      return Codebook::kNf8;
  }
}

std::vector<PackedTensorLayout> CodebookLayout(const Format& format, int64_t rows, int64_t cols) {
  const int64_t count = rows * cols;
  const int64_t blocks = CeilDivide(count, kCodebookBlock);
  const PackedTensorLayout codes{"codes", at::kByte, {PackedCodeBytes(count, format.bits)}};
  if (!format.double_quantized) return {{"absmax", at::kFloat, {blocks}}, codes};
  return {{"absmax", at::kByte, {blocks}},
          codes,
          {"nested_absmax", at::kFloat, {CeilDivide(blocks, kNestedBlock)}},
          {"offset", at::kFloat, {1}}};
}

void QuantizeCodebook(const at::Tensor& values, PackedWeight& packed) {
  const Codebook codebook = CodebookOf(packed.format);
  const int64_t count = values.numel();
  const int64_t blocks = CeilDivide(count, kCodebookBlock);
  const float* data = values.const_data_ptr<float>();
  uint8_t* to = packed.tensors.at("codes").mutable_data_ptr<uint8_t>();
  const at::Tensor absmax = packed.format.double_quantized ? at::empty({blocks}, at::kFloat)
                                                           : packed.tensors.at("absmax");
  float* scales = absmax.mutable_data_ptr<float>();
  ForEachStrip(count, [&](int64_t first, int64_t size) {
    uint8_t codes[kStrip];
    EncodeCodebook(codebook, data + first, size, codes, scales + first / kCodebookBlock);
    PackCodes(codebook, codes, size, to + first * packed.format.bits / 8);
  });
  if (!packed.format.double_quantized) return;
  const float offset = MeanOf(scales, blocks);
  packed.tensors.at("offset").fill_(offset);
  EncodeNestedAbsmax(scales, blocks, offset,
                     packed.tensors.at("absmax").mutable_data_ptr<uint8_t>(),
                     packed.tensors.at("nested_absmax").mutable_data_ptr<float>());
}

void PackCodebookCodes(const at::Tensor& codes, PackedWeight& packed) {
  const Codebook codebook = CodebookOf(packed.format);
  const uint8_t* from = codes.const_data_ptr<uint8_t>();
  uint8_t* to = packed.tensors.at("codes").mutable_data_ptr<uint8_t>();
  ForEachStrip(codes.numel(), [&](int64_t first, int64_t size) {
    PackCodes(codebook, from + first, size, to + first * packed.format.bits / 8);
  });
}

at::Tensor CodebookAbsmax(const PackedWeight& packed) {
  const at::Tensor& stored = packed.tensors.at("absmax");
  if (!packed.format.double_quantized) return stored;
  at::Tensor absmax = at::empty_like(stored, at::kFloat);
  DecodeNestedAbsmax(stored.const_data_ptr<uint8_t>(),
                     packed.tensors.at("nested_absmax").const_data_ptr<float>(),
                     packed.tensors.at("offset").const_data_ptr<float>()[0], stored.numel(),
                     absmax.mutable_data_ptr<float>());
  return absmax;
}

at::Tensor DequantizeCodebook(const PackedWeight& packed) {
  const Codebook codebook = CodebookOf(packed.format);
  at::Tensor result = at::empty({packed.rows, packed.cols}, at::kFloat);
  float* out = result.mutable_data_ptr<float>();
  const uint8_t* from = packed.tensors.at("codes").const_data_ptr<uint8_t>();
  const at::Tensor absmax = CodebookAbsmax(packed);
  const float* scales = absmax.const_data_ptr<float>();
  ForEachStrip(result.numel(), [&](int64_t first, int64_t size) {
    uint8_t codes[kStrip];
    UnpackCodes(codebook, from + first * packed.format.bits / 8, size, codes);
    DecodeCodebook(codebook, codes, scales + first / kCodebookBlock, size, out + first);
  });
  return result;
}

}  // namespace qpruner::engine
