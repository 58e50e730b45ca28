// Float32 as GGUF tensor data.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGML_QUANTIZE_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGML_QUANTIZE_H_

#include <cstdint>

#include "worker/engine/formats/ggml_type.h"

namespace qpruner::engine {

// True for the types that can be written: all but Q5_K.
bool CanQuantizeGgml(GgmlType type);

// Writes the blocks of `count` finite values to `out` (count / block_size * block_bytes bytes).
// `count` must be a multiple of the type's block size.
//
// F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: bit for bit what the Python package `gguf` gives, and so
// llama.cpp's reference. Q4_K, Q6_K: after llama.cpp's reference (ggml-quants.c,
// quantize_row_q4_K_ref, quantize_row_q6_K_ref), bit for bit if that is compiled without fused
// multiply-adds; a build that fuses them decides a few near-ties otherwise
// (tests/compat/gguf_k_quants_golden.py). Thread-safe.
void QuantizeGgml(GgmlType type, const float* values, int64_t count, char* out);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGML_QUANTIZE_H_
