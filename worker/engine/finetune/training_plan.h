// What fine-tuning keeps in memory: chosen from sizes and a limit, and told to the user.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

struct TrainingPlanOptions {
  int64_t rank = 16;
  int64_t batch_tokens = 0;     // Of a micro-batch, padding included.
  int64_t held_out_tokens = 0;  // Of the largest held-out batch.
  int64_t objective_bytes = 0;  // What the objective takes (TrainingObjective).
  at::ScalarType dtype = at::kFloat;
  int64_t memory_limit_bytes = 0;
};

// Both kinds of plan give the same gradients bit for bit: the same operations on the same shapes.
// Bytes are estimates from sizes.
struct TrainingPlan {
  // kResident: all weights, dequantized, and one micro-batch's activations of every block stay in
  // memory. kStreamed: one block at a time, fetched and computed again in the backward walk; what
  // waits is each block's input, in a HostStore.
  enum class Kind { kResident, kStreamed };
  Kind kind = Kind::kStreamed;
  int64_t weight_bytes = 0;      // Of all weights, dequantized, with room for the adapter's A.
  int64_t activation_bytes = 0;  // Of one micro-batch, all blocks.
  // Beside them, whatever the kind: a block's buffers of the backward pass and its activations of a
  // held-out batch; the adapter, the best one, gradients and the optimizer's moments; the objective
  // and the process.
  int64_t other_bytes = 0;
  int64_t expected_bytes = 0;  // All that is held under this plan.
  int64_t memory_limit_bytes = 0;

  // "resident (12.3 MB of weights and 45.6 MB of activations; limit 1024.0 MB)", ...
  std::string Describe() const;
};

// kResident if all fits options.memory_limit_bytes.
TrainingPlan PlanTraining(const ModelConfig& config, const TrainingPlanOptions& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_
