// Writer of safetensors files.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_SAFETENSORS_WRITER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_SAFETENSORS_WRITER_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "worker/engine/formats/safetensors_reader.h"

namespace qpruner::engine {

// A tensor to be written. `bytes` gives its row-major content when it is its turn, so that a model
// larger than memory can be written; where a tensor is large itself, in pieces, one a call.
struct TensorToWrite {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::function<std::string()> bytes;
  int64_t pieces = 1;
};

// Writes aside, syncs and renames: `path` holds the whole file or what it held before. Tensors are
// stored by falling element size (so each is aligned), then by name: equal content gives equal
// files. INTERNAL: a tensor's bytes do not fit its shape, or a name is given twice. Other codes: of
// the failed system call.
absl::Status WriteSafetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_SAFETENSORS_WRITER_H_
