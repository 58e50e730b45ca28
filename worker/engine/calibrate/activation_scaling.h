// Activation-aware scaling (AWQ, Lin et al. 2023, arXiv 2306.00978): input channels that carry
// large activations get larger weights before quantization, so that they lose less, and what comes
// before is divided by the same factor. The model computes the same function; no operation is
// added.
//
// Where a factor can be folded:
//   attention input  columns of query, key and value; divides the attention norm
//   attention value  columns of output; divides the rows of value (one factor for all query heads
//                    that read the channel)
//   MLP input        columns of gate and up; divides the MLP norm
//   MLP hidden       columns of down; divides the rows of up
#ifndef QPRUNER_WORKER_ENGINE_CALIBRATE_ACTIVATION_SCALING_H_
#define QPRUNER_WORKER_ENGINE_CALIBRATE_ACTIVATION_SCALING_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "worker/engine/model/wrapped_source.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Factors of one block, positive, float32, CPU.
struct BlockScales {
  at::Tensor attention_input;  // [hidden]
  at::Tensor attention_value;  // [num_kv_heads * head_dim]
  at::Tensor mlp_input;        // [hidden]
  at::Tensor mlp_hidden;       // [intermediate]
};

struct ActivationScaling {
  std::vector<BlockScales> blocks;
  // Mean square error of the linears' outputs that round-to-nearest in `format` makes, over all
  // linears: without and with the factors.
  double error_unscaled = 0;
  double error_scaled = 0;
};

// For each place, s = a^alpha with a the root mean square of the channel's activations (the paper
// has the mean magnitude), normalized to sqrt(max s min s) = 1, and alpha on a grid of `grid_size`
// steps from 0 (no scaling) up: the one that rounds to `format` with the least error of outputs on
// `batches`. One walk, memory as WalkInputMoments.
ActivationScaling FindActivationScaling(
    WeightSource& source, const std::vector<TokenBatch>& batches, const Format& format,
    int grid_size = 20, const std::function<void(double fraction)>& on_progress = {});

// The model with the factors folded in.
class ScaledSource final : public WrappedSource {
 public:
  // `base` must outlive this; `blocks` must belong to a model of its shape.
  ScaledSource(WeightSource& base, std::vector<BlockScales> blocks);

  BlockWeights Block(int64_t block) override;

 private:
  const std::vector<BlockScales> blocks_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_CALIBRATE_ACTIVATION_SCALING_H_
