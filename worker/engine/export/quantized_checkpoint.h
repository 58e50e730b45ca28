// What the exports of quantized models for serving engines have in common: a Hugging Face folder
// whose linears are packed in an engine's own layout, the rest in bfloat16.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_QUANTIZED_CHECKPOINT_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_QUANTIZED_CHECKPOINT_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

// The tensors of one linear, to be written under `prefix` ("model.layers.3.mlp.up_proj."). `packed`
// gives the linear when it is its turn.
using PackLinear = std::function<std::vector<TensorToWrite>(
    const std::string& prefix, const Format& format, int64_t rows, int64_t cols,
    const std::function<PackedWeight()>& packed)>;

struct QuantizedCheckpoint {
  // config.json's "quantization_config".
  nlohmann::json quantization_config;
  // For linears that are not in bfloat16; those are stored as "weight".
  PackLinear pack;
  // Model folder or .gguf file whose tokenizer is written too; empty: none.
  std::string tokenizer_from;
};

// Writes config.json, model.safetensors and the tokenizer into `folder`, which is made if it is
// missing. Returns their names, sorted. Create `source` with Keep::kPacked or a store.
// Codes: of the failed system call. Throws c10::Error as `source` does.
absl::StatusOr<std::vector<std::string>> WriteQuantizedCheckpoint(
    const std::string& folder, QuantizedSource& source, const QuantizedCheckpoint& checkpoint);

// A tensor that is made from the packed weight when it is its turn.
TensorToWrite PackedTensorToWrite(std::string name, DType dtype, std::vector<int64_t> shape,
                                  std::function<at::Tensor()> tensor);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_QUANTIZED_CHECKPOINT_H_
