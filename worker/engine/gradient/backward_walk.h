// Gradients of the next-token loss, one block at a time.
//
// A forward walk keeps each block's input on the host (HostStore). The loss is differentiated at
// the final hidden states, with the head applied in chunks. Then the blocks are visited from last
// to first: each one's forward is computed again under autograd and differentiated alone. So the
// device holds one block with its activations, whatever the model's size (gradient checkpointing,
// Chen et al. 2016, arXiv 1604.06174, with every block a checkpoint).
#ifndef QPRUNER_WORKER_ENGINE_GRADIENT_BACKWARD_WALK_H_
#define QPRUNER_WORKER_ENGINE_GRADIENT_BACKWARD_WALK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Cross entropy in nats, summed over `tokens` predictions.
struct LossSum {
  double nats = 0;
  int64_t tokens = 0;

  double mean() const { return tokens == 0 ? 0 : nats / static_cast<double>(tokens); }
  LossSum& operator+=(const LossSum& other) {
    nats += other.nats;
    tokens += other.tokens;
    return *this;
  }
};

// Summed cross entropy of the predictions that final hidden states (after the final norm) make of
// `targets` (NextTokenTargets). Logits are computed in chunks and in float32. If `gradient` is
// not null it becomes the loss's gradient with respect to `hidden`, of the same shape and dtype.
LossSum NextTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                      at::Tensor* gradient = nullptr);

// Summed cross entropy of the model over `batches`, by ForwardHidden.
LossSum NextTokenLoss(WeightSource& source, const std::vector<TokenBatch>& batches);

// What a walk computes in each block besides the blocks' inputs.
class BlockDifferentiation {
 public:
  virtual ~BlockDifferentiation() = default;

  // Called when the backward walk has loaded `block`, before any batch.
  virtual void EnterBlock(int64_t block, const BlockWeights& weights) {}
  // The linear that `block` is computed with, in both walks.
  virtual LinearFunction Linear(int64_t block) { return PlainLinear; }
  // Called in the backward walk after the forward of `block` over `batch`: the tensors of that
  // graph to differentiate with respect to. All must require grad.
  virtual std::vector<at::Tensor> Wanted(int64_t block, int64_t batch) = 0;
  // Their gradients, in the same order. The loss is the SUM of the batch's cross entropies.
  virtual void Take(int64_t block, int64_t batch, const std::vector<at::Tensor>& gradients) = 0;
  // Called after the last batch of `block`.
  virtual void LeaveBlock(int64_t block) {}
};

// Runs both walks over `batches`. `on_block_done(done, of)` counts block visits of both walks
// (progress); may be empty.
LossSum WalkBackward(WeightSource& source, const std::vector<TokenBatch>& batches,
                     BlockDifferentiation& differentiation,
                     const std::function<void(int64_t done, int64_t of)>& on_block_done = {});

// What one linear saw in one batch.
struct LinearTrace {
  at::Tensor input;            // x [batch, length, in]
  at::Tensor output_gradient;  // dL/dy [batch, length, out], L the summed cross entropy
};

// A differentiation with respect to every linear's output: all that is needed for weight gradients,
// of the batch (dL/dy^T x) or of each of its samples.
class LinearTracing : public BlockDifferentiation {
 public:
  LinearFunction Linear(int64_t block) final;
  std::vector<at::Tensor> Wanted(int64_t block, int64_t batch) final;
  void Take(int64_t block, int64_t batch, const std::vector<at::Tensor>& gradients) final;

 protected:
  virtual void TakeTraces(int64_t block, int64_t batch, const PerLinear<LinearTrace>& traces) = 0;

 private:
  PerLinear<at::Tensor> inputs_;
  PerLinear<at::Tensor> outputs_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_GRADIENT_BACKWARD_WALK_H_
