// Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the linears of each block, and
// their LoftQ initialisation (Li et al. 2023, arXiv 2310.08659).
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_LORA_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_LORA_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

struct LoraOptions {
  int64_t rank = 8;
  double alpha = 16;  // The update is scaled by alpha / rank.
  uint64_t seed = 42;
  // The linears that are adapted, in every block.
  std::vector<LinearKind> targets{kLinearKinds.begin(), kLinearKinds.end()};

  double scale() const { return alpha / static_cast<double>(rank); }
};

// y = x W^T + scale (x A^T) B^T. A and B are float32, whatever the base computes in; undefined
// where a linear is not adapted.
struct LoraAdapter {
  int64_t rank = 0;
  double alpha = 0;
  std::vector<PerLinear<at::Tensor>> a;  // [block][linear]: [rank, in]
  std::vector<PerLinear<at::Tensor>> b;  // [block][linear]: [out, rank]

  bool adapts(int64_t block, LinearKind kind) const {
    return a[static_cast<size_t>(block)][kind].defined();
  }
  double scale() const { return alpha / static_cast<double>(rank); }
  int64_t parameter_count() const;
  LoraAdapter Clone() const;
};

// A of one linear: uniform in +-1/sqrt(in) (Kaiming with a = sqrt(5), as PEFT), from seed, block
// and kind alone. On the CPU.
at::Tensor InitialA(const LoraOptions& options, int64_t block, LinearKind kind,
                    int64_t in_features);

// InitialA, and B = 0: the model starts as its base.
LoraAdapter ZeroAdapter(const ModelConfig& config, const LoraOptions& options, at::Device device);

// One linear's LoftQ start.
struct LoftqStart {
  // What is to be quantized and stored as the base: W - scale B A of the iteration before the last
  // (W itself after one iteration), NOT W. float32.
  at::Tensor base_before_quantization;
  at::Tensor a;                // [rank, in] float32
  at::Tensor b;                // [out, rank] float32
  double error_quantized = 0;  // ||W - q(W)||, Frobenius: what quantization alone leaves.
  double error = 0;            // ||W - (q(base_before_quantization) + scale B A)||
};

// Alternates for `iterations` >= 1 steps: Q = q(W - scale B A), then scale B A = best approximation
// of rank `rank` to W - Q, with B = U sqrt(S) / scale and A = sqrt(S) V^T. The division by `scale`
// is what makes Q + scale B A approximate W: the paper's Q + B A does not once alpha differs from
// rank. `quantized(weight)` gives the dequantized float32 weight. Where W - Q has fewer than `rank`
// directions (a lossless format, a narrow matrix), the others start as in ZeroAdapter: A from
// `fallback_a` [rank, in], B = 0, so that they can still learn.
// More iterations are not always better: `error` tells.
LoftqStart InitLoftq(const at::Tensor& weight,
                     const std::function<at::Tensor(const at::Tensor& weight)>& quantized,
                     int64_t rank, double scale, int iterations, const at::Tensor& fallback_a);

// The linear that adds `adapter`'s update in `block`. The adapter must outlive it. Differentiable
// in A and B where they require grad.
LinearFunction LoraLinear(const LoraAdapter& adapter, int64_t block);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_LORA_H_
