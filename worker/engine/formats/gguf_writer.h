// Writer of GGUF files (version 3, little-endian).
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_WRITER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_WRITER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "worker/engine/formats/ggml_type.h"
#include "worker/engine/formats/gguf_metadata.h"

namespace qpruner::engine {

// The key-value part, in the order in which it is added. Keys must differ.
class GgufMetadataToWrite {
 public:
  void AddUint32(absl::string_view key, uint32_t value);
  void AddFloat32(absl::string_view key, float value);
  void AddBool(absl::string_view key, bool value);
  void AddString(absl::string_view key, absl::string_view value);
  void AddStrings(absl::string_view key, const std::vector<std::string>& values);
  void AddInt32s(absl::string_view key, const std::vector<int32_t>& values);
  void AddFloat32s(absl::string_view key, const std::vector<float>& values);
  // All of `other`, behind what is there.
  void Append(const GgufMetadataToWrite& other);

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void AddKey(absl::string_view key, GgufValueType type);
  void AddArray(absl::string_view key, GgufValueType element_type, uint64_t count);

  uint64_t count_ = 0;
  std::string bytes_;
};

// A tensor to be written. `bytes` gives its blocks when it is its turn, so that a model larger than
// memory can be written. `shape`: slowest dimension first; its last is a whole number of blocks.
struct GgufTensorToWrite {
  std::string name;
  GgmlType type;
  std::vector<int64_t> shape;
  std::function<std::string()> bytes;
};

// Writes aside, syncs and renames: `path` holds the whole file or what it held before. Tensors keep
// their order; equal content gives equal files. INTERNAL: a tensor's bytes do not fit its shape.
// Other codes: of the failed system call.
absl::Status WriteGguf(const std::string& path, const GgufMetadataToWrite& metadata,
                       const std::vector<GgufTensorToWrite>& tensors);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_WRITER_H_
