#include "worker/engine/tasks/rounded_source.h"

#include <ATen/ATen.h>

namespace qpruner::engine {

at::Tensor RoundedSource::Rounded(const at::Tensor& tensor) const {
  return tensor.defined() ? tensor.to(stored_).to(tensor.scalar_type()) : tensor;
}

BlockWeights RoundedSource::Block(int64_t block) {
  BlockWeights weights = base_.Block(block);
  for (const LinearKind kind : kLinearKinds) {
    weights.weight[kind] = Rounded(weights.weight[kind]);
    weights.bias[kind] = Rounded(weights.bias[kind]);
  }
  for (at::Tensor* norm :
       {&weights.attention_norm, &weights.mlp_norm, &weights.query_norm, &weights.key_norm}) {
    *norm = Rounded(*norm);
  }
  return weights;
}

}  // namespace qpruner::engine
