// Measurements in the terms of the API.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_METRICS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_METRICS_H_

#include <cstdint>

#include "qpruner/v1/job.pb.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/quantize/assignment.h"

namespace qpruner::engine {

// Number of all weights.
int64_t ParameterCount(const ModelConfig& config);

// Of a model stored as a checkpoint of `weight_bytes`.
v1::ModelMetrics CheckpointMetrics(const ModelConfig& config, int64_t weight_bytes,
                                   const TokenMetrics& measured);

// Of a model stored in packed formats.
v1::ModelMetrics PackedMetrics(const ModelBytes& bytes, const TokenMetrics& measured);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_METRICS_H_
