// Which linear is stored in which format, and what the whole model then costs in bytes.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_ASSIGNMENT_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_ASSIGNMENT_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

// The format of every linear of every block, by LinearName: "model.layers.3.self_attn.q_proj".
using FormatAssignment = std::map<std::string, Format>;

// All linears in one format.
FormatAssignment UniformAssignment(const ModelConfig& config, const Format& format);

// INVALID_ARGUMENT names the first linear that is missing, or that the model does not have.
absl::Status CheckAssignment(const ModelConfig& config, const FormatAssignment& assignment);

// Bytes of the weights as stored, exactly: what PackedWeights and the packed file hold, without the
// file's header.
struct ModelBytes {
  int64_t linear_bytes = 0;  // Codes, scales and zero points of the linears.
  int64_t fixed_bytes = 0;   // All else in bfloat16: see FixedBytes.
  int64_t linear_parameter_count = 0;
  int64_t parameter_count = 0;

  int64_t total() const { return linear_bytes + fixed_bytes; }
  // As ModelMetrics.average_bits.
  double average_bits() const {
    return 8.0 * static_cast<double>(linear_bytes) / static_cast<double>(linear_parameter_count);
  }
};
// REQUIRES: CheckAssignment(config, assignment) is OK.
ModelBytes CountBytes(const ModelConfig& config, const FormatAssignment& assignment);

// Bytes of what is never quantized, in bfloat16: embedding, head (unless tied), norms and biases.
int64_t FixedBytes(const ModelConfig& config);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_ASSIGNMENT_H_
