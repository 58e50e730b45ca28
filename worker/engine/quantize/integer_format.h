// The integer formats on tensors: see format.h for what is stored.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_INTEGER_FORMAT_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_INTEGER_FORMAT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

// A group format's content, one element a code.
struct IntegerCodes {
  at::Tensor codes;       // [rows, cols] uint8, 0 to 2^bits - 1
  at::Tensor scale;       // [rows, groups] bfloat16
  at::Tensor zero_point;  // [rows, groups] uint8, a code; 2^(bits-1) throughout if symmetric
};

std::vector<PackedTensorLayout> IntegerGroupLayout(const Format& format, int64_t rows,
                                                   int64_t cols);

// Scales and zero points that cover the values [rows, cols] (float32, contiguous, finite, CPU);
// `codes` stays undefined.
IntegerCodes FindIntegerGroups(const at::Tensor& values, const Format& format);

// Nearest codes of all values for given scales and zero points.
void RoundToIntegerGroups(const at::Tensor& values, const Format& format, IntegerCodes& codes);

// Fills the tensors of `packed`, which are there with the shapes of its layout.
void PackIntegers(const IntegerCodes& codes, PackedWeight& packed);
// The inverse, on the CPU.
IntegerCodes UnpackIntegers(const PackedWeight& packed);

// All of the above in one pass.
void QuantizeIntegerGroups(const at::Tensor& values, PackedWeight& packed);
// float32 [rows, cols].
at::Tensor DequantizeIntegerGroups(const PackedWeight& packed);

void QuantizeInt8Rows(const at::Tensor& values, PackedWeight& packed);
at::Tensor DequantizeInt8Rows(const PackedWeight& packed);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_INTEGER_FORMAT_H_
