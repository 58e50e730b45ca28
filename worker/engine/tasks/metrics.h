// Measurements in the terms of the API.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_METRICS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_METRICS_H_

#include "qpruner/v1/job.pb.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/quantize/assignment.h"

namespace qpruner::engine {

// Of a model as a checkpoint stores it.
v1::ModelMetrics CheckpointMetrics(const Checkpoint& checkpoint, const TokenMetrics& measured);

// Of a model stored in packed formats.
v1::ModelMetrics PackedMetrics(const ModelBytes& bytes, const TokenMetrics& measured);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_METRICS_H_
