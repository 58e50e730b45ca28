// Export for engines that read bitsandbytes checkpoints (transformers, vLLM): 4 bits (NF4, FP4,
// also doubly quantized) or 8 bits (int8-row) throughout, bfloat16 for linears that are skipped.
//
// The bytes are those of quantize/format.h under bitsandbytes' names. 4 bits: `weight` U8
// [ceil(n / 2), 1], `weight.absmax`, `weight.quant_map`, and with double quantization
// `weight.nested_absmax` and `weight.nested_quant_map`; `weight.quant_state.bitsandbytes__nf4` (or
// `__fp4`) U8, the bytes of a JSON object. 8 bits: `weight` I8, `SCB` F32, `weight_format` U8 (0:
// row by row). An engine runs 8 bits as LLM.int8, with activations in 8 bits too.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_BITSANDBYTES_MODEL_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_BITSANDBYTES_MODEL_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

// Whether the export can hold a model whose linears take any of `formats`. INVALID_ARGUMENT names
// the rule: one of nf4, nf4-dq, fp4, fp4-dq and int8-row, besides bfloat16; blocks of one shape.
absl::Status CheckBitsandbytes(const ModelConfig& config, const std::vector<Format>& formats);

// Writes the folder. REQUIRES: CheckBitsandbytes. Otherwise as WriteQuantizedCheckpoint.
absl::StatusOr<std::vector<std::string>> WriteBitsandbytes(const std::string& folder,
                                                           QuantizedSource& source,
                                                           const std::string& tokenizer_from);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_BITSANDBYTES_MODEL_H_
