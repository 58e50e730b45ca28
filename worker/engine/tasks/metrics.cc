#include "worker/engine/tasks/metrics.h"

namespace qpruner::engine {
namespace {

v1::ModelMetrics Metrics(int64_t weight_bytes, double average_bits, int64_t parameter_count,
                         const TokenMetrics& measured) {
  v1::ModelMetrics metrics;
  metrics.set_weight_bytes(weight_bytes);
  metrics.set_average_bits(average_bits);
  metrics.set_parameter_count(parameter_count);
  metrics.set_perplexity(measured.perplexity());
  metrics.set_kl_divergence(measured.mean_kl());
  metrics.set_token_count(measured.token_count);
  // Only the original is measured without a reference.
  metrics.set_top1_agreement(measured.has_reference ? measured.top1_agreement() : 1);
  metrics.set_tokens_per_second(measured.tokens_per_second());
  return metrics;
}

// Stored bytes of the blocks' linears, without biases.
int64_t LinearBytes(const Checkpoint& checkpoint) {
  int64_t bytes = 0;
  for (int64_t block = 0; block < checkpoint.config().num_blocks(); ++block) {
    for (const LinearKind kind : kLinearKinds) {
      const CheckpointTensor& weight = checkpoint.tensor(LinearName(block, kind) + ".weight");
      bytes += static_cast<int64_t>(weight.bytes.size());
    }
  }
  return bytes;
}

}  // namespace

v1::ModelMetrics CheckpointMetrics(const Checkpoint& checkpoint, const TokenMetrics& measured) {
  const ModelConfig& config = checkpoint.config();
  return Metrics(checkpoint.weight_bytes(),
                 8.0 * static_cast<double>(LinearBytes(checkpoint)) /
                     static_cast<double>(LinearParameterCount(config)),
                 ParameterCount(config), measured);
}

v1::ModelMetrics PackedMetrics(const ModelBytes& bytes, const TokenMetrics& measured) {
  return Metrics(bytes.total(), bytes.average_bits(), bytes.parameter_count, measured);
}

}  // namespace qpruner::engine
