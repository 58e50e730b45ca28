// Knowledge distillation: the student learns the original model's whole distribution, not only the
// next token (Hinton et al. 2015, arXiv 1503.02531).
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_DISTILLATION_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_DISTILLATION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "worker/engine/finetune/training_objective.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

struct DistillationOptions {
  double weight = 0.5;     // [0, 1]: 0 is plain cross entropy.
  double temperature = 1;  // > 0: both distributions are softened by it.
};

// A position's loss is (1 - weight) CE + weight T^2 KL(teacher || student), both of the
// divergence's distributions being softmax(logits / T). T^2 keeps the divergence's gradient as
// large as at T = 1 (Hinton et al., section 2). Summed over the positions that have a target.
//
// `hidden` and `teacher_hidden` [positions, width] are after the final norm; logits are made in
// chunks, in float32 (float64 for float64), of both models at once: never all of them. If
// `gradient` is not null it becomes the sum's gradient with respect to `hidden`.
LossSum DistillationLoss(const at::Tensor& hidden, const at::Tensor& head,
                         const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                         const at::Tensor& targets, const DistillationOptions& options,
                         at::Tensor* gradient);

// What a DistillationObjective takes, its teacher included: chunks of both models' logits and their
// temporaries, the teacher's head, one block of it in `teacher_dtype` with its activations, and its
// states over a step of `step_tokens`. Of activations those of a backward walk are counted, which
// are more.
ObjectiveCosts DistillationCosts(const ModelConfig& teacher, at::ScalarType teacher_dtype,
                                 at::Device device, int64_t step_tokens);

// With the teacher's hidden states computed for the batches of each step, by streaming or not, as
// `teacher` does.
class DistillationObjective final : public TrainingObjective {
 public:
  // `teacher` must outlive this and have the student's vocabulary. Throws c10::Error if it has not.
  DistillationObjective(WeightSource& teacher, int64_t vocab_size,
                        const DistillationOptions& options);

  void Begin(const std::vector<TrainingBatch>& batches) override;
  LossSum Evaluate(const TrainingBatch& batch, const at::Tensor& hidden, const at::Tensor& head,
                   at::Tensor* gradient) const override;

 private:
  WeightSource& teacher_;
  const DistillationOptions options_;
  at::Tensor teacher_head_;
  std::map<int64_t, at::Tensor> hidden_;  // By the batch's first sequence.
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_DISTILLATION_H_
