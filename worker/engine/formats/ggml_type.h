// The element types of GGUF tensors: how llama.cpp's library ggml stores a row of weights.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGML_TYPE_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGML_TYPE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace qpruner::engine {

// Values are those of the file. A type stores a row in blocks of block_size weights; a row is a
// whole number of blocks. Layouts: llama.cpp, ggml/src/ggml-common.h.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,   // 4 bits, a scale for 32 weights; zero point in the middle
  kQ4_1 = 3,   // 4 bits, scale and minimum for 32 weights
  kQ5_0 = 6,   // as Q4_0, 5 bits
  kQ5_1 = 7,   // as Q4_1, 5 bits
  kQ8_0 = 8,   // 8 bits, a scale for 32 weights
  kQ4_K = 12,  // 4 bits, scale and minimum for 32 weights, themselves quantized for 256
  kQ5_K = 13,  // as Q4_K, 5 bits
  kQ6_K = 14,  // 6 bits, a scale for 16 weights, itself quantized for 256
  kBF16 = 30,
};

struct GgmlTypeInfo {
  GgmlType type;
  const char* name;     // "Q4_K", ...
  int64_t block_size;   // Weights a block.
  int64_t block_bytes;  // Bytes a block.
};

const GgmlTypeInfo& InfoOf(GgmlType type);
// Bytes of `count` weights, a whole number of blocks. `count` is trusted: see gguf_reader.cc for
// one that is not.
int64_t GgmlBytes(GgmlType type, int64_t count);
// The type with that number in a file; nullopt if it is not one of the above.
std::optional<GgmlType> GgmlTypeFromNumber(uint32_t number);
// "F32, F16, Q4_0, ..": all of them, for messages.
std::string SupportedGgmlTypes();

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGML_TYPE_H_
