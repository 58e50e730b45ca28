// LoRA training on a frozen base: the loop around lora_gradients.h.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINER_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/finetune/adam_w.h"
#include "worker/engine/finetune/learning_rate.h"
#include "worker/engine/finetune/lora.h"
#include "worker/engine/finetune/training_objective.h"
#include "worker/engine/finetune/training_plan.h"
#include "worker/engine/finetune/training_text.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

struct TrainerOptions {
  int64_t batch_size = 8;  // Sequences a step.
  // Sequences on the device at a time, at most: TrainingPlan takes fewer where memory is short.
  // Changes results by rounding.
  int64_t micro_batch_size = 8;
  int64_t sequence_length = 256;  // Tokens.
  LearningRateOptions learning_rate;
  double max_gradient_norm = 1;  // 0: no clipping.
  AdamWOptions adam_w;
  double dropout = 0;                 // Of the adapters' inputs, [0, 1).
  int64_t evaluate_every = 25;        // Steps between held-out losses; also at 0 and at the end.
  uint64_t seed = 42;                 // Of the order of the text and of dropout.
  at::ScalarType dtype = at::kFloat;  // What base and activations are computed in.
  // For TrainingPlan:
  int64_t memory_limit_bytes = int64_t{4} << 30;
  ObjectiveCosts objective = kCrossEntropyCosts;
  int64_t base_bytes = 0;  // What the base holds beside the blocks that it gives.

  int64_t steps() const { return learning_rate.steps; }
};

// Lengths of the held-out text: of its largest batch, and of its longest sequence, in tokens.
struct HeldOutShape {
  int64_t batch_tokens = 0;
  int64_t length = 0;
};
HeldOutShape ShapeOf(const std::vector<TokenBatch>& held_out);

// What Train will keep in memory for an adapter of `rank` on a base on `device`.
// INVALID_ARGUMENT: as PlanTraining.
absl::StatusOr<TrainingPlan> PlanOf(const ModelConfig& config, int64_t rank, at::Device device,
                                    const TrainerOptions& options, const HeldOutShape& held_out);

struct CurvePoint {
  int64_t step = 0;  // Updates made.
  // Mean of the batches since the previous point, nats a token, each before its update. Unset at 0.
  std::optional<double> train_loss;
  double held_out_loss = 0;
};

// Everything training depends on besides its inputs; a copy (Clone) is a checkpoint.
struct TrainingState {
  LoraAdapter adapter;
  AdamWState optimizer;
  int64_t step = 0;  // Updates made.
  LoraAdapter best;  // The adapter of the lowest held-out loss so far.
  int64_t best_step = 0;
  std::vector<CurvePoint> curve;
  // Since the last point of the curve.
  double loss_sum = 0;
  int64_t loss_count = 0;

  TrainingState Clone() const;
};

struct TrainingProgress {
  int64_t step = 0;  // Updates made.
  int64_t steps = 0;
  double train_loss = 0;                // Of the last batch.
  std::optional<double> held_out_loss;  // If it was measured after this step.
};

// Called after the first evaluation and after each step. False stops: the state can be saved and
// continued later with the same result as without the stop.
using TrainingObserver = std::function<bool(const TrainingProgress&, const TrainingState&)>;

// Checks what can be checked before any work. INVALID_ARGUMENT names the field and the rule.
absl::Status CheckTrainer(const TrainerOptions& options);

// A state at step 0. `adapter` is taken over (moved to the base's device when training starts).
TrainingState StartTraining(LoraAdapter adapter);

// Trains from state.step to options.steps() on `objective` (null: cross entropy) over `sequences`,
// with the cross entropy of next-token prediction on `held_out` as held-out loss. state.best is the
// result. INVALID_ARGUMENT: as CheckTrainer or PlanTraining, or nothing to train or evaluate on.
// INTERNAL: the loss is no longer finite; says at which step.
absl::Status Train(WeightSource& base, const std::vector<TrainingSequence>& sequences,
                   const std::vector<TokenBatch>& held_out, const TrainerOptions& options,
                   TrainingState& state, const TrainingObserver& observer = {},
                   TrainingObjective* objective = nullptr);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINER_H_
