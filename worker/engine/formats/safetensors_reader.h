// Strict reader of safetensors files, memory-mapped. No LibTorch here: this is where foreign bytes
// come in, and it is tested under the sanitizers.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_SAFETENSORS_READER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_SAFETENSORS_READER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

enum class DType { kF32, kF16, kBF16, kF64, kI64, kI32, kI16, kI8, kU8, kBool };

// Bytes of one element.
int64_t DTypeSize(DType dtype);
// "F32", ... as in the file.
const char* DTypeName(DType dtype);

// A tensor in a mapped file. Valid as long as the reader that gave it.
struct TensorView {
  DType dtype;
  std::vector<int64_t> shape;
  // Row-major, in place, not necessarily aligned to the element size.
  absl::string_view bytes;

  int64_t element_count() const;
};

// One safetensors file. Immutable and thread-safe once open.
class SafetensorsReader {
 public:
  // Maps `path` and checks everything: header length and JSON, dtypes, shapes against byte ranges,
  // ranges in order without overlap or gap and within the file. INVALID_ARGUMENT says which tensor
  // and which rule. NOT_FOUND: no such file.
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(const std::string& path);
  virtual ~SafetensorsReader() = default;

  virtual const std::map<std::string, TensorView>& tensors() const = 0;
  virtual const std::map<std::string, std::string>& metadata() const = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_SAFETENSORS_READER_H_
