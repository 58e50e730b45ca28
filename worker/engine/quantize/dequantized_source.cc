#include "worker/engine/quantize/dequantized_source.h"

#include <ATen/ATen.h>

namespace qpruner::engine {

BlockWeights DequantizedSource::Block(int64_t block) {
  BlockWeights weights = quantized_.BlockWith(LinearSet(), block);
  for (LinearKind kind : kLinearKinds) {
    weights.weight[kind] = Dequantize(quantized_.Packed(block, kind), at::kFloat, device());
    at::Tensor& bias = weights.bias[kind];
    if (bias.defined()) bias = bias.to(at::kFloat);
  }
  for (at::Tensor* norm :
       {&weights.attention_norm, &weights.mlp_norm, &weights.query_norm, &weights.key_norm}) {
    if (norm->defined()) *norm = norm->to(at::kFloat);
  }
  return weights;
}

at::Tensor DequantizedSource::FinalNorm() { return base().FinalNorm().to(at::kFloat); }

}  // namespace qpruner::engine
