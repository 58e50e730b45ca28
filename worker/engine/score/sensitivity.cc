#include "worker/engine/score/sensitivity.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/evaluate/head_scores.h"
#include "worker/engine/model/decoder.h"

namespace qpruner::engine {
namespace {

// One group in one format, on its way through the blocks.
struct Variant {
  size_t group = 0;
  size_t format = 0;
  std::vector<at::Tensor> hidden;  // One a batch, on the host.
};

}  // namespace

std::vector<std::vector<double>> MeasureSensitivity(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized, const std::function<void(double fraction)>& on_progress) {
  at::NoGradGuard no_grad;
  const ModelConfig& config = source.config();
  const int64_t block_count = config.num_blocks();
  const size_t batch_count = batches.size();
  int64_t longest = 1;
  int64_t tokens = 0;
  for (const TokenBatch& batch : batches) {
    longest = std::max(longest, batch.ids.size(1));
    tokens += (batch.lengths - 1).sum().item<int64_t>();
  }
  TORCH_CHECK(tokens > 0, "Sensitivities need calibration samples");
  const RotaryTables rotary = MakeRotaryTables(config, longest, source.device(), source.dtype());
  const auto forward = [&](int64_t block, const BlockWeights& weights, const at::Tensor& hidden) {
    return BlockForward(config, config.blocks[block], weights, rotary, hidden.to(source.device()))
        .to(at::kCPU);
  };
  // Every block once for the reference, then, for each block, itself and all later ones.
  const int64_t visits = block_count + block_count * (block_count + 1) / 2;
  int64_t visited = 0;
  const auto report = [&] {
    ++visited;
    if (on_progress) on_progress(static_cast<double>(visited) / static_cast<double>(visits));
  };

  // inputs[block][batch]; inputs[block_count] holds the last block's outputs.
  std::vector<std::vector<at::Tensor>> inputs(block_count + 1,
                                              std::vector<at::Tensor>(batch_count));
  const at::Tensor head = source.Head();
  const at::Tensor norm = source.FinalNorm();
  {
    const at::Tensor embedding = source.Embedding();
    for (size_t i = 0; i < batch_count; ++i) {
      inputs[0][i] = Embed(embedding, batches[i].ids.to(source.device())).to(at::kCPU);
    }
  }
  for (int64_t block = 0; block < block_count; ++block) {
    const BlockWeights weights = source.Block(block);
    for (size_t i = 0; i < batch_count; ++i) {
      inputs[block + 1][i] = forward(block, weights, inputs[block][i]);
    }
    report();
  }
  // Final hidden states of the positions that count, on the device.
  const auto finish = [&](const at::Tensor& hidden, const TokenBatch& batch) {
    const at::Tensor kept =
        hidden.reshape({-1, config.hidden_size}).index_select(0, FindNextTokens(batch).rows);
    return HeadRows{RmsNorm(kept.to(source.device()), norm, config.rms_norm_eps), head};
  };

  std::vector<std::vector<double>> sensitivities(groups.size(),
                                                 std::vector<double>(formats.size(), 0));
  for (int64_t block = 0; block < block_count; ++block) {
    std::vector<Variant> variants;
    {
      const BlockWeights weights = source.Block(block);
      for (size_t group = 0; group < groups.size(); ++group) {
        if (groups[group].block != block) continue;
        for (size_t format = 0; format < formats.size(); ++format) {
          BlockWeights changed = weights;
          bool differs = false;
          for (LinearKind kind : groups[group].linears) {
            changed.weight[kind] = quantized(block, kind, weights.weight[kind], formats[format]);
            differs = differs || !at::equal(changed.weight[kind], weights.weight[kind]);
          }
          if (!differs) continue;
          Variant& variant = variants.emplace_back(Variant{group, format, {}});
          for (size_t i = 0; i < batch_count; ++i) {
            variant.hidden.push_back(forward(block, changed, inputs[block][i]));
          }
        }
      }
    }
    inputs[block].clear();
    report();
    for (int64_t later = block + 1; later < block_count; ++later) {
      if (!variants.empty()) {
        const BlockWeights weights = source.Block(later);
        for (Variant& variant : variants) {
          for (at::Tensor& hidden : variant.hidden) hidden = forward(later, weights, hidden);
        }
      }
      report();
    }
    std::vector<double> sums(variants.size(), 0);
    for (size_t i = 0; i < batch_count; ++i) {
      const HeadRows reference = finish(inputs[block_count][i], batches[i]);
      std::vector<HeadRows> finished;
      for (const Variant& variant : variants) {
        finished.push_back(finish(variant.hidden[i], batches[i]));
      }
      const std::vector<HeadSums> of_batch = SumHeads(&reference, finished, /*targets=*/{});
      for (size_t v = 0; v < variants.size(); ++v) sums[v] += of_batch[v].kl_sum;
    }
    for (size_t v = 0; v < variants.size(); ++v) {
      sensitivities[variants[v].group][variants[v].format] = sums[v] / static_cast<double>(tokens);
    }
  }
  return sensitivities;
}

}  // namespace qpruner::engine
