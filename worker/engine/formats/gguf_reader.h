// Strict reader of GGUF files (versions 2 and 3, little-endian), memory-mapped. Free of LibTorch:
// this is where foreign bytes come in, and it is tested under the sanitizers.
//
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_READER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_READER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/formats/ggml_type.h"
#include "worker/engine/formats/gguf_metadata.h"

namespace qpruner::engine {

// A tensor in a mapped file. Valid as long as the reader that gave it.
struct GgufTensor {
  GgmlType type;
  // Slowest dimension first, as in safetensors and PyTorch (the file has them the other way round).
  std::vector<int64_t> shape;
  // Row-major rows of blocks, in place.
  absl::string_view bytes;

  int64_t element_count() const;
};

// One GGUF file. Immutable and thread-safe once open.
class GgufReader {
 public:
  // Maps `path` and checks everything: lengths and counts against the file's size, types, names,
  // shapes, and that the tensors lie one behind the other, aligned, without overlap or gap beyond
  // the alignment. INVALID_ARGUMENT says which key or tensor and which rule. NOT_FOUND: no such
  // file.
  static absl::StatusOr<std::unique_ptr<const GgufReader>> Open(const std::string& path);
  virtual ~GgufReader() = default;

  virtual const GgufMetadata& metadata() const = 0;
  virtual const std::map<std::string, GgufTensor>& tensors() const = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_READER_H_
