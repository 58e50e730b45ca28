#include "worker/engine/gradient/backward_walk.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/model/host_store.h"

namespace qpruner::engine {
namespace {

// Logits alive at a time: 32 MiB in float32.
constexpr int64_t kLogitsPerChunk = int64_t{1} << 23;

}  // namespace

LossSum NextTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                      at::Tensor* gradient) {
  at::NoGradGuard no_grad;
  const int64_t width = hidden.size(-1);
  // Only positions with a target go through the head.
  const at::Tensor flat_targets = targets.to(hidden.device()).reshape({-1});
  const at::Tensor rows = flat_targets.ne(kNoTarget).nonzero().squeeze(1);
  const at::Tensor labels = flat_targets.index_select(0, rows);
  const at::Tensor flat_hidden = hidden.reshape({-1, width});
  if (gradient != nullptr) *gradient = at::zeros_like(hidden, at::MemoryFormat::Contiguous);
  at::Tensor flat_gradient;
  if (gradient != nullptr) flat_gradient = gradient->view({-1, width});

  LossSum loss;
  loss.tokens = rows.size(0);
  const int64_t chunk = std::max<int64_t>(1, kLogitsPerChunk / head.size(0));
  for (int64_t first = 0; first < loss.tokens; first += chunk) {
    const int64_t count = std::min(chunk, loss.tokens - first);
    const at::Tensor chunk_rows = rows.narrow(0, first, count);
    const at::Tensor chunk_labels = labels.narrow(0, first, count).unsqueeze(1);
    at::Tensor logits = HeadLogits(flat_hidden.index_select(0, chunk_rows), head);
    // Double stays double, for gradient checks.
    if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
    // In place, so that the logits exist once: -log p_label = log sum exp(z - m) - (z_label - m).
    const at::Tensor label_logits = logits.gather(1, chunk_labels);
    const at::Tensor largest = logits.amax(-1, /*keepdim=*/true);
    logits.sub_(largest).exp_();
    const at::Tensor sums = logits.sum(-1, /*keepdim=*/true);
    loss.nats += (sums.log() - (label_logits - largest)).sum(at::kDouble).item<double>();
    if (gradient != nullptr) {
      // d(-log p_label)/dlogits = p - onehot(label).
      logits.div_(sums);
      logits.scatter_add_(1, chunk_labels, at::full_like(chunk_labels, -1, logits.options()));
      flat_gradient.index_copy_(0, chunk_rows,
                                HeadLogitsBackward(logits.to(hidden.scalar_type()), head));
    }
  }
  return loss;
}

LossSum NextTokenLoss(WeightSource& source, const std::vector<TokenBatch>& batches) {
  std::vector<at::Tensor> ids;
  for (const TokenBatch& batch : batches) ids.push_back(batch.ids);
  const std::vector<at::Tensor> hidden = ForwardHidden(source, ids);
  const at::Tensor head = source.Head();
  LossSum loss;
  for (size_t i = 0; i < batches.size(); ++i) {
    loss += NextTokenLoss(hidden[i].to(source.device()), head, NextTokenTargets(batches[i]));
  }
  return loss;
}

LossSum WalkBackward(WeightSource& source, const std::vector<TokenBatch>& batches,
                     BlockDifferentiation& differentiation,
                     const std::function<void(int64_t done, int64_t of)>& on_block_done) {
  const ModelConfig& config = source.config();
  const int64_t block_count = config.num_blocks();
  const auto batch_count = static_cast<int64_t>(batches.size());
  int64_t longest = 1;
  for (const TokenBatch& batch : batches) longest = std::max(longest, batch.ids.size(1));
  const RotaryTables rotary = MakeRotaryTables(config, longest, source.device(), source.dtype());
  int64_t done = 0;
  const auto report = [&] {
    if (on_block_done) on_block_done(++done, 2 * block_count);
  };

  HostStore waiting = HostStore::Beside(source.device());
  // inputs[block][batch]; inputs[block_count] holds the last block's outputs.
  std::vector<std::vector<at::Tensor>> inputs(block_count + 1,
                                              std::vector<at::Tensor>(batch_count));
  {
    at::NoGradGuard no_grad;
    for (int64_t i = 0; i < batch_count; ++i) {
      inputs[0][i] = waiting.Keep(Embed(source, batches[i].ids));
    }
    for (int64_t block = 0; block < block_count; ++block) {
      const BlockWeights weights = source.Block(block);
      const LinearFunction linear = differentiation.Linear(block);
      for (int64_t i = 0; i < batch_count; ++i) {
        const at::Tensor hidden = inputs[block][i].to(source.device());
        inputs[block + 1][i] = waiting.Keep(
            BlockForward(config, config.blocks[block], weights, rotary, hidden, linear));
      }
      report();
    }
  }

  LossSum loss;
  std::vector<at::Tensor> gradients(batch_count);  // Of the block outputs, on the host.
  {
    const at::Tensor head = source.Head();
    const at::Tensor norm = source.FinalNorm();
    for (int64_t i = 0; i < batch_count; ++i) {
      const at::Tensor hidden =
          inputs[block_count][i].to(source.device()).detach().requires_grad_(true);
      at::AutoGradMode enable_grad(true);
      const at::Tensor normed = RmsNorm(hidden, norm, config.rms_norm_eps);
      at::Tensor d_normed;
      loss += NextTokenLoss(normed.detach(), head, NextTokenTargets(batches[i]), &d_normed);
      gradients[i] = waiting.Keep(torch::autograd::grad({normed}, {hidden}, {d_normed})[0]);
      inputs[block_count][i] = at::Tensor();
    }
  }

  for (int64_t block = block_count - 1; block >= 0; --block) {
    const BlockWeights weights = source.Block(block);
    differentiation.EnterBlock(block, weights);
    const LinearFunction linear = differentiation.Linear(block);
    for (int64_t i = 0; i < batch_count; ++i) {
      at::AutoGradMode enable_grad(true);
      const at::Tensor hidden = inputs[block][i].to(source.device()).detach().requires_grad_(true);
      const at::Tensor output =
          BlockForward(config, config.blocks[block], weights, rotary, hidden, linear);
      std::vector<at::Tensor> wanted = differentiation.Wanted(block, i);
      wanted.push_back(hidden);
      std::vector<at::Tensor> found =
          torch::autograd::grad({output}, wanted, {gradients[i].to(source.device())});
      gradients[i] = waiting.Keep(found.back());
      found.pop_back();
      inputs[block][i] = at::Tensor();
      at::NoGradGuard no_grad;
      differentiation.Take(block, i, found);
    }
    differentiation.LeaveBlock(block);
    report();
  }
  return loss;
}

LinearFunction LinearTracing::Linear(int64_t block) {
  return [this](LinearKind kind, const at::Tensor& x, const at::Tensor& weight,
                const at::Tensor& bias) {
    at::Tensor y = PlainLinear(kind, x, weight, bias);
    if (at::GradMode::is_enabled()) {
      inputs_[kind] = x.detach();
      outputs_[kind] = y;
    }
    return y;
  };
}

std::vector<at::Tensor> LinearTracing::Wanted(int64_t block, int64_t batch) {
  std::vector<at::Tensor> outputs;
  for (LinearKind kind : kLinearKinds) outputs.push_back(outputs_[kind]);
  return outputs;
}

void LinearTracing::Take(int64_t block, int64_t batch, const std::vector<at::Tensor>& gradients) {
  PerLinear<LinearTrace> traces;
  for (LinearKind kind : kLinearKinds) {
    traces[kind] = {inputs_[kind], gradients[static_cast<size_t>(kind)]};
  }
  inputs_ = {};
  outputs_ = {};
  TakeTraces(block, batch, traces);
}

}  // namespace qpruner::engine
