#include "worker/engine/finetune/merged_source.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

namespace qpruner::engine {

BlockWeights MergedSource::Block(int64_t block) {
  at::NoGradGuard no_grad;
  BlockWeights weights = base_.Block(block);
  for (LinearKind kind : kLinearKinds) {
    if (!adapter_.adapts(block, kind)) continue;
    const at::Tensor update =
        at::matmul(adapter_.b[block][kind], adapter_.a[block][kind]) * adapter_.scale();
    const at::Tensor& base = weights.weight[kind];
    weights.weight[kind] = (base.to(at::kFloat) + update.to(base.device())).to(base.scalar_type());
  }
  return weights;
}

}  // namespace qpruner::engine
