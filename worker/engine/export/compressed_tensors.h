// Export for engines that read compressed-tensors (vLLM, transformers): a width per layer.
//
// Format "pack-quantized": one config group a width and kind of group, whose targets are regular
// expressions on module names; linears in bfloat16 are in none. Per linear `weight_packed` I32
// [rows, ceil(cols bits / 32)], `weight_scale` [rows, groups] and `weight_shape` I64 [2]; no zero
// points, so groups are symmetric (docs/exports.md). Integers of `int8-row` become a channel-wise
// group with float32 scales SCB / 127.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_COMPRESSED_TENSORS_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_COMPRESSED_TENSORS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

// Whether the export can hold a model whose linears take any of `formats`. INVALID_ARGUMENT names
// the format or linear and the rule: symmetric integers of 4 or 8 bits in groups, int8-row and
// bfloat16; rows that are whole groups; blocks of one shape.
absl::Status CheckCompressedTensors(const ModelConfig& config, const std::vector<Format>& formats);

// Writes the folder. REQUIRES: CheckCompressedTensors. Otherwise as WriteQuantizedCheckpoint.
absl::StatusOr<std::vector<std::string>> WriteCompressedTensors(const std::string& folder,
                                                                QuantizedSource& source,
                                                                const std::string& tokenizer_from);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_COMPRESSED_TENSORS_H_
