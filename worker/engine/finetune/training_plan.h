// What fine-tuning keeps in memory: chosen from sizes and a limit, and told to the user.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

// Both kinds of plan give the same gradients bit for bit: the same operations on the same shapes.
struct TrainingPlan {
  // kResident: all weights, dequantized, and one micro-batch's activations of every block stay in
  // memory. kStreamed: one block at a time, fetched and computed again in the backward walk; what
  // waits is each block's input.
  enum class Kind { kResident, kStreamed };
  Kind kind = Kind::kStreamed;
  int64_t weight_bytes = 0;      // Of all weights, dequantized, with room for the adapter's A.
  int64_t activation_bytes = 0;  // Of one micro-batch, all blocks.
  int64_t memory_limit_bytes = 0;

  // "resident (12.3 MB of weights and 45.6 MB of activations within 1024.0 MB)", ...
  std::string Describe() const;
};

// kResident if weights and activations fit `memory_limit_bytes` together.
TrainingPlan PlanTraining(const ModelConfig& config, int64_t rank, int64_t tokens_a_micro_batch,
                          at::ScalarType dtype, int64_t memory_limit_bytes);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_
