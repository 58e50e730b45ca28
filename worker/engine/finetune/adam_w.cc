#include "worker/engine/finetune/adam_w.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>

namespace qpruner::engine {

void AdamWStep(const AdamWOptions& options, double learning_rate,
               const std::vector<at::Tensor>& gradients, std::vector<at::Tensor>& parameters,
               AdamWState& state) {
  TORCH_CHECK(gradients.size() == parameters.size(), "One gradient a parameter is needed");
  at::NoGradGuard no_grad;
  if (state.mean.empty()) {
    for (const at::Tensor& parameter : parameters) {
      state.mean.push_back(at::zeros_like(parameter));
      state.square_mean.push_back(at::zeros_like(parameter));
    }
  }
  ++state.step;
  const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(state.step));
  const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(state.step));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& gradient = gradients[i];
    at::Tensor& parameter = parameters[i];
    if (options.weight_decay != 0) parameter.mul_(1 - learning_rate * options.weight_decay);
    state.mean[i].lerp_(gradient, 1 - options.beta1);
    state.square_mean[i].mul_(options.beta2).addcmul_(gradient, gradient, 1 - options.beta2);
    const at::Tensor denominator =
        state.square_mean[i].sqrt().div_(std::sqrt(correction2)).add_(options.epsilon);
    parameter.addcdiv_(state.mean[i], denominator, -learning_rate / correction1);
  }
}

double ClipGradientNorm(std::vector<at::Tensor>& gradients, double max_norm) {
  at::NoGradGuard no_grad;
  double square = 0;
  for (const at::Tensor& gradient : gradients) {
    square += gradient.square().sum(at::kDouble).item<double>();
  }
  const double norm = std::sqrt(square);
  const double factor = max_norm / (norm + 1e-6);
  if (factor < 1) {
    for (at::Tensor& gradient : gradients) gradient.mul_(factor);
  }
  return norm;
}

}  // namespace qpruner::engine
