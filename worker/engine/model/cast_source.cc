#include "worker/engine/model/cast_source.h"

#include <ATen/ATen.h>

namespace qpruner::engine {

at::Tensor CastSource::Cast(const at::Tensor& tensor) const {
  return tensor.defined() && base().dtype() != dtype_ ? tensor.to(dtype_) : tensor;
}

BlockWeights CastSource::Cast(BlockWeights weights) const {
  for (const LinearKind kind : kLinearKinds) {
    weights.weight[kind] = Cast(weights.weight[kind]);
    weights.bias[kind] = Cast(weights.bias[kind]);
  }
  for (at::Tensor* norm :
       {&weights.attention_norm, &weights.mlp_norm, &weights.query_norm, &weights.key_norm}) {
    *norm = Cast(*norm);
  }
  return weights;
}

}  // namespace qpruner::engine
