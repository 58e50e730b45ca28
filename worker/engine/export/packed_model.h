// The quantized weights in their packed bytes: what the byte counts of a job are about.
//
// A folder of two files:
//   model.safetensors   for each linear its packed tensors as "<linear>.<tensor>", such as
//                       "model.layers.0.self_attn.q_proj.codes" (see quantize/format.h for
//                       layouts); everything else in bfloat16 under its checkpoint name.
//   quantization.json   {"format": "qpruner-packed", "version": 1,
//                        "linears": {"<linear>": {"format": "nf4", "bits": 4, "shape": [out, in],
//                                                 "bytes": n}, ..},
//                        "linear_bytes", "fixed_bytes", "total_bytes", "average_bits"}
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_PACKED_MODEL_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_PACKED_MODEL_H_

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

// Writes both files into `folder`, which is made if it is missing. Returns their paths relative to
// it. Create `source` with Keep::kPacked: the file's order visits a block once for each dtype.
// Codes: of the failed system call. Throws c10::Error as `source` does.
absl::StatusOr<std::vector<std::string>> WritePackedModel(const std::string& folder,
                                                          QuantizedSource& source);

// Such a folder, read back. Immutable and thread-safe once open.
class PackedModel {
 public:
  // Checks that the two files fit each other: every linear's format is known, its tensors are there
  // with the layout's dtypes and shapes, and nothing but bfloat16 tensors is there besides.
  // INVALID_ARGUMENT names the file, tensor or field and the rule. NOT_FOUND: a file is missing.
  static absl::StatusOr<std::unique_ptr<PackedModel>> Open(const std::string& folder);

  const FormatAssignment& assignment() const { return assignment_; }
  // The linear as it was packed, bit for bit; a copy. Throws std::out_of_range for a name that is
  // not in assignment().
  PackedWeight Linear(const std::string& name) const;
  // What is not quantized: embedding, norms, .. by checkpoint name, bfloat16; copies.
  std::map<std::string, at::Tensor> FixedTensors() const;

 private:
  PackedModel() = default;

  std::shared_ptr<const SafetensorsReader> file_;
  FormatAssignment assignment_;
  std::map<std::string, std::pair<int64_t, int64_t>> shapes_;  // [rows, cols] by linear.
  std::vector<std::string> fixed_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_PACKED_MODEL_H_
