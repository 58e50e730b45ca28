// What fine-tuning minimizes, at the final hidden states.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_OBJECTIVE_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_OBJECTIVE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Sequences of one step that are on the device together.
struct TrainingBatch {
  at::Tensor ids;              // [batch, length] int64 CPU, padded on the right.
  at::Tensor targets;          // [batch, length] int64 CPU: the next token, or kNoTarget.
  int64_t first_sequence = 0;  // Position of the first row among the step's sequences.
};

// Predicts every token after the first.
TrainingBatch PlainBatch(const TokenBatch& batch);

// What an objective takes beside its arguments, at most, in bytes.
struct ObjectiveCosts {
  int64_t fixed_bytes = 0;
  int64_t token_bytes = 0;  // For each token of a micro-batch.
};

// Chunks of logits in float32, and temporaries as large.
inline constexpr ObjectiveCosts kCrossEntropyCosts = {.fixed_bytes = int64_t{3} * 32 << 20};

class TrainingObjective {
 public:
  virtual ~TrainingObjective() = default;
  // Called with all batches of a step before the first of them is evaluated.
  virtual void Begin(const std::vector<TrainingBatch>& batches) {}
  // The loss summed over the batch's targets. `hidden` [batch, length, hidden] is after the final
  // norm, `head` [vocab, hidden] of the same dtype. If `gradient` is not null it becomes the sum's
  // gradient with respect to `hidden`.
  virtual LossSum Evaluate(const TrainingBatch& batch, const at::Tensor& hidden,
                           const at::Tensor& head, at::Tensor* gradient) const = 0;
};

// Cross entropy with the targets.
class CrossEntropyObjective final : public TrainingObjective {
 public:
  LossSum Evaluate(const TrainingBatch& batch, const at::Tensor& hidden, const at::Tensor& head,
                   at::Tensor* gradient) const override;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_OBJECTIVE_H_
