// What fine-tuning keeps in memory: chosen from sizes and a limit, and told to the user.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/engine/finetune/training_objective.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

struct TrainingPlanOptions {
  int64_t rank = 16;
  int64_t batch_size = 1;        // Sequences a step.
  int64_t micro_batch_size = 1;  // Of them on the device at a time, at most.
  int64_t sequence_length = 0;   // Tokens, padding included.
  int64_t held_out_tokens = 0;   // Of the largest held-out batch, padding included.
  int64_t held_out_length = 0;   // Of the longest held-out sequence.
  ObjectiveCosts objective;
  int64_t base_bytes = 0;  // What the base holds beside the blocks that it gives.
  at::ScalarType dtype = at::kFloat;
  // Whether the device's memory is the host's: there what waits for the backward walk counts.
  bool on_host = true;
  int64_t memory_limit_bytes = 0;
};

// With micro-batches of the same size both kinds of plan give the same gradients bit for bit: the
// same operations on the same shapes. The size changes them by rounding. Bytes are estimates from
// sizes.
struct TrainingPlan {
  // kResident: all weights, dequantized, and one micro-batch's activations of every block stay in
  // memory. kStreamed: one block at a time, fetched and computed again in the backward walk; what
  // waits is each block's input, in a HostStore.
  enum class Kind { kResident, kStreamed };
  Kind kind = Kind::kStreamed;
  int64_t micro_batch_size = 0;  // Sequences on the device at a time.
  int64_t held_out_tokens = 0;   // Likewise of held-out batches; at least one sequence.
  int64_t weight_bytes = 0;      // Of all weights, dequantized, with room for the adapter's A.
  int64_t activation_bytes = 0;  // Of one micro-batch, all blocks.
  // Beside them, whatever the kind: a block's buffers of the backward pass and its activations of a
  // held-out batch; the adapter, the best one, gradients and the optimizer's moments; the
  // objective, the base and the process.
  int64_t other_bytes = 0;
  int64_t expected_bytes = 0;  // All that is held under this plan.
  int64_t memory_limit_bytes = 0;

  // "resident, 8 sequences at a time (12.3 MB of weights and 45.6 MB of activations; about 80.1 MB
  // of a limit of 1024.0 MB)", ...
  std::string Describe() const;
};

// kResident if all fits options.memory_limit_bytes, else kStreamed; if that does not fit either,
// the same with half of the micro-batch and of the held-out batches, and so on.
// INVALID_ARGUMENT: not even one block with one sequence fits; names the limit and what is needed.
absl::StatusOr<TrainingPlan> PlanTraining(const ModelConfig& config,
                                          const TrainingPlanOptions& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_PLAN_H_
