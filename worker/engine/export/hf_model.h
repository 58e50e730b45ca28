// A plain Hugging Face model folder, which transformers and serving engines load.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_HF_MODEL_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_HF_MODEL_H_

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

struct HfModelOptions {
  // at::kBFloat16 or at::kFloat: what the weights are rounded to, once.
  at::ScalarType dtype = at::kBFloat16;
  // Model folder or .gguf file whose tokenizer is written too; empty: none.
  std::string tokenizer_from;
};

// Writes config.json, model.safetensors and the tokenizer's files into `folder`, which is made if
// it is missing. The weights are streamed block by block. A tied head is not stored a second time.
// For a quantized or adapted model, give the source that has those weights (QuantizedSource,
// MergedSource): what is written is what a measurement over the written folder sees.
// Returns the paths written, relative to `folder`, sorted. Each file is whole or absent.
// INVALID_ARGUMENT: another dtype. Other codes: of the failed system call. Throws c10::Error as
// `source` does.
absl::StatusOr<std::vector<std::string>> WriteHfModel(const std::string& folder,
                                                      WeightSource& source,
                                                      const HfModelOptions& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_HF_MODEL_H_
