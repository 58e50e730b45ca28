// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2), step for step as
// torch.optim.AdamW.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_ADAM_W_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_ADAM_W_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace qpruner::engine {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
};

// What the optimizer remembers: plain data, so that a checkpoint can hold it.
struct AdamWState {
  int64_t step = 0;              // Updates made.
  std::vector<at::Tensor> mean;  // One a parameter; empty before the first update.
  std::vector<at::Tensor> square_mean;
};

// Updates `parameters` in place. The three lists have the same order and shapes at every call.
void AdamWStep(const AdamWOptions& options, double learning_rate,
               const std::vector<at::Tensor>& gradients, std::vector<at::Tensor>& parameters,
               AdamWState& state);

// Scales `gradients` in place so that their joint Euclidean norm is at most `max_norm` (> 0), as
// torch.nn.utils.clip_grad_norm_. Returns the norm before.
double ClipGradientNorm(std::vector<at::Tensor>& gradients, double max_norm);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_ADAM_W_H_
