// LoRA training on a frozen base, by block streaming: block inputs are kept on the host, each block
// is computed again in the backward walk and differentiated alone, with respect to A and B only.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINER_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/finetune/adam_w.h"
#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

struct TrainerOptions {
  int64_t steps = 200;
  int64_t batch_size = 8;         // Sequences a step.
  int64_t micro_batch_size = 8;   // Sequences on the device at a time; changes memory, not results.
  int64_t sequence_length = 256;  // Tokens.
  double learning_rate = 1e-3;    // Peak.
  int64_t warmup_steps = 20;      // Linear from 0; then a cosine to 0 at `steps`.
  double max_gradient_norm = 1;   // 0: no clipping.
  AdamWOptions adam_w;
  int64_t evaluate_every = 25;  // Steps between held-out losses; also at 0 and at the end.
  uint64_t seed = 42;           // Of the order of the text.
};

// Learning rate of update `step` (from 0), as transformers' get_cosine_schedule_with_warmup.
double LearningRate(const TrainerOptions& options, int64_t step);

// Sequences of `length` tokens cut from the documents joined in an order drawn from `seed`; a last
// one shorter than `length` is kept if it has at least 2 tokens. So almost no position is padding.
std::vector<TokenIds> PackDocuments(const std::vector<TokenIds>& documents, int64_t length,
                                    uint64_t seed);

// Indices of the sequences of update `step`: each epoch is a permutation drawn from (seed, epoch),
// so that the order follows from the step alone.
std::vector<int64_t> SequencesOfStep(int64_t sequence_count, int64_t batch_size, uint64_t seed,
                                     int64_t step);

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

// Trains from state.step to options.steps on next-token prediction of `sequences` (PackDocuments),
// with held-out loss on `held_out`. state.best is the result.
// INVALID_ARGUMENT: as CheckTrainer, or nothing to train or evaluate on. INTERNAL: the loss is no
// longer finite; says at which step.
absl::Status Train(WeightSource& base, const std::vector<TokenIds>& sequences,
                   const std::vector<TokenBatch>& held_out, const TrainerOptions& options,
                   TrainingState& state, const TrainingObserver& observer = {});

// One update's mean loss and gradients, in the order of TrainedParameters. What Train uses; exposed
// for tests.
struct LoraGradients {
  double loss = 0;  // Mean over the tokens of all batches, nats.
  std::vector<at::Tensor> gradients;
};
LoraGradients ComputeLoraGradients(WeightSource& base, const LoraAdapter& adapter,
                                   const std::vector<TokenBatch>& micro_batches);

// A and B of each linear of each block: [block 0 q.A, q.B, k.A, ..]. They alias the adapter.
std::vector<at::Tensor> TrainedParameters(const LoraAdapter& adapter);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINER_H_
