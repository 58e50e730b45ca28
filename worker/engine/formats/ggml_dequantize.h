// GGUF tensor data as float32.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGML_DEQUANTIZE_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGML_DEQUANTIZE_H_

#include <cstdint>

#include "worker/engine/formats/ggml_type.h"

namespace qpruner::engine {

// Writes the `count` values stored at `blocks` to `out`. `count` must be a multiple of the type's
// block size; `blocks` need not be aligned. Bit for bit what the Python package `gguf` gives, and
// so llama.cpp's reference (tests/compat/gguf_types_golden.py). Scales that are infinite or NaN
// give such values. Thread-safe.
void DequantizeGgml(GgmlType type, const char* blocks, int64_t count, float* out);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGML_DEQUANTIZE_H_
