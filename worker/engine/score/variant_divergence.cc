#include "worker/engine/score/variant_divergence.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/evaluate/head_scores.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"

namespace qpruner::engine {
namespace {

// A variant on its way through the blocks: hidden states, one a batch, on the host.
using States = std::vector<at::Tensor>;

}  // namespace

std::vector<std::vector<double>> MeasureVariants(
    WeightSource& source, const std::vector<TokenBatch>& batches, const VariantMaker& variants,
    const std::function<void(double fraction)>& on_progress, const VariantProgress& progress) {
  at::NoGradGuard no_grad;
  const ModelConfig& config = source.config();
  const int64_t block_count = config.num_blocks();
  const size_t batch_count = batches.size();
  int64_t longest = 1;
  int64_t tokens = 0;
  for (const TokenBatch& batch : batches) {
    longest = std::max(longest, batch.ids.size(1));
    tokens += batch.predicted_tokens();
  }
  TORCH_CHECK(tokens > 0, "Divergences need calibration samples");
  const RotaryTables rotary = MakeRotaryTables(config, longest, source.device(), source.dtype());
  HostStore waiting = HostStore::Beside(source.device());
  const auto forward = [&](const BlockShape& shape, const BlockWeights& weights,
                           const at::Tensor& hidden) {
    return waiting.Keep(BlockForward(config, shape, weights, rotary, hidden.to(source.device())));
  };
  // Every block once for the reference, then, for each block, itself and all later ones.
  const int64_t visits = block_count + block_count * (block_count + 1) / 2;
  int64_t visited = 0;
  const auto report = [&](int64_t count = 1) {
    visited += count;
    if (on_progress) on_progress(static_cast<double>(visited) / static_cast<double>(visits));
  };

  // inputs[block][batch]; inputs[block_count] holds the last block's outputs.
  std::vector<std::vector<at::Tensor>> inputs(block_count + 1,
                                              std::vector<at::Tensor>(batch_count));
  const at::Tensor head = source.Head();
  const at::Tensor norm = source.FinalNorm();
  for (size_t i = 0; i < batch_count; ++i) {
    inputs[0][i] = waiting.Keep(Embed(source, batches[i].ids));
  }
  for (int64_t block = 0; block < block_count; ++block) {
    const BlockWeights weights = source.Block(block);
    for (size_t i = 0; i < batch_count; ++i) {
      inputs[block + 1][i] = forward(config.blocks[block], weights, inputs[block][i]);
    }
    report();
  }
  // Final hidden states of the positions that count, on the device.
  const auto finish = [&](const at::Tensor& hidden, const TokenBatch& batch) {
    const at::Tensor kept =
        hidden.reshape({-1, config.hidden_size}).index_select(0, FindNextTokens(batch).rows);
    return HeadRows{RmsNorm(kept.to(source.device()), norm, config.rms_norm_eps), head};
  };

  std::vector<std::vector<double>> divergences;
  for (int64_t block = 0; block < block_count; ++block) {
    if (block < progress.first_block) {
      inputs[block].clear();
      divergences.emplace_back();
      report(block_count - block);
      continue;
    }
    std::vector<States> changed;
    variants(block, source.Block(block), [&](const BlockShape& shape, const BlockWeights& weights) {
      States& states = changed.emplace_back();
      for (size_t i = 0; i < batch_count; ++i) {
        states.push_back(forward(shape, weights, inputs[block][i]));
      }
    });
    inputs[block].clear();
    report();
    for (int64_t later = block + 1; later < block_count; ++later) {
      if (!changed.empty()) {
        const BlockWeights weights = source.Block(later);
        for (States& states : changed) {
          for (at::Tensor& hidden : states) {
            hidden = forward(config.blocks[later], weights, hidden);
          }
        }
      }
      report();
    }
    std::vector<double>& sums = divergences.emplace_back(changed.size(), 0);
    for (size_t i = 0; i < batch_count; ++i) {
      const HeadRows reference = finish(inputs[block_count][i], batches[i]);
      std::vector<HeadRows> finished;
      for (const States& states : changed) finished.push_back(finish(states[i], batches[i]));
      const std::vector<HeadSums> of_batch = SumHeads(&reference, finished, /*targets=*/{});
      for (size_t v = 0; v < changed.size(); ++v) sums[v] += of_batch[v].kl_sum;
    }
    for (double& sum : sums) sum = sum < 0 ? 0 : sum / static_cast<double>(tokens);  // NaN stays.
    if (progress.on_block) progress.on_block(block, sums);
  }
  return divergences;
}

}  // namespace qpruner::engine
