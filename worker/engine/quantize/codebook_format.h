// NF2, NF3, NF4, NF8 and FP4 on tensors: see format.h for what is stored.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOK_FORMAT_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOK_FORMAT_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "worker/engine/quantize/codebook_kernels.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

// Of a codebook format.
Codebook CodebookOf(const Format& format);

std::vector<PackedTensorLayout> CodebookLayout(const Format& format, int64_t rows, int64_t cols);

// values: float32, contiguous, finite, on the CPU. Fills the tensors of `packed`, which are there
// with the shapes of its layout.
void QuantizeCodebook(const at::Tensor& values, PackedWeight& packed);

// float32 [rows, cols].
at::Tensor DequantizeCodebook(const PackedWeight& packed);

// Replaces the codes of `packed` by `codes` [rows, cols] uint8; its scales stay.
void PackCodebookCodes(const at::Tensor& codes, PackedWeight& packed);

// The absmax of each block in float32, [blocks], also where it is stored doubly quantized.
at::Tensor CodebookAbsmax(const PackedWeight& packed);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOK_FORMAT_H_
