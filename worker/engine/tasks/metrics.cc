#include "worker/engine/tasks/metrics.h"

#include <functional>
#include <numeric>

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

}  // namespace

int64_t ParameterCount(const ModelConfig& config) {
  int64_t count = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    count +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  return count;
}

v1::ModelMetrics CheckpointMetrics(const ModelConfig& config, int64_t weight_bytes,
                                   const TokenMetrics& measured) {
  const int64_t parameter_count = ParameterCount(config);
  return Metrics(weight_bytes,
                 8.0 * static_cast<double>(weight_bytes) / static_cast<double>(parameter_count),
                 parameter_count, measured);
}

v1::ModelMetrics PackedMetrics(const ModelBytes& bytes, const TokenMetrics& measured) {
  return Metrics(bytes.total(), bytes.average_bits(), bytes.parameter_count, measured);
}

}  // namespace qpruner::engine
