// A model as one GGUF file, which llama.cpp and what is built on it load.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_GGUF_MODEL_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_GGUF_MODEL_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/formats/ggml_type.h"
#include "worker/engine/formats/gguf_writer.h"
#include "worker/engine/formats/tokenizer_files.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

struct GgufModelOptions {
  // The type of each linear, by LinearName.
  std::map<std::string, GgmlType> linears;
  // The type of the embedding and the head. Norms and biases are F32: llama.cpp wants them so.
  GgmlType embedding = GgmlType::kBF16;
  TokenizerFiles tokenizer;
  // general.name and general.description.
  std::string name;
  std::string description;
};

struct GgufModelSummary {
  int64_t weight_bytes = 0;  // Of all tensors.
  // Tensors by type name.
  std::map<std::string, int> tensors_by_type;
  // What a reader should know: tensors whose rows do not fit the type that was asked for.
  std::vector<std::string> notes;
};

// The type that a row of `width` weights is stored in where `wanted` is asked for: itself if the
// row is a whole number of its blocks; else Q4_1 for Q4_K and Q8_0 for Q6_K; else F16.
GgmlType FittingType(GgmlType wanted, int64_t width);

// OK if GGUF, as llama.cpp reads it, can hold a model of this config with this tokenizer: one shape
// for all blocks, a tokenizer that has a name there. INVALID_ARGUMENT says what it cannot hold. For
// refusing a job before its work.
absl::Status CheckGgufModel(const ModelConfig& config, const TokenizerFiles& tokenizer);

// Writes `path`. Weights are streamed block by block and quantized once, from `source`'s values.
// Head size is always explicit (attention.key_length, value_length), so that a pruned model is read
// rightly. INVALID_ARGUMENT: as CheckGgufModel, or a linear without a type. Other codes: of the
// failed system call. Throws c10::Error as `source` does.
absl::StatusOr<GgufModelSummary> WriteGgufModel(const std::string& path, WeightSource& source,
                                                const GgufModelOptions& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_GGUF_MODEL_H_
