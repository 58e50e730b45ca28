#include "worker/engine/finetune/merged_source.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

namespace qpruner::engine {

BlockWeights MergedSource::Block(int64_t block) {
  at::NoGradGuard no_grad;
  BlockWeights weights = base().Block(block);
  for (LinearKind kind : kLinearKinds) {
    if (!adapter_.adapts(block, kind)) continue;
    const at::Tensor update =
        at::matmul(adapter_.b[block][kind], adapter_.a[block][kind]) * adapter_.scale();
    at::Tensor& weight = weights.weight[kind];
    weight = (weight.to(at::kFloat) + update.to(weight.device())).to(weight.scalar_type());
  }
  return weights;
}

}  // namespace qpruner::engine
