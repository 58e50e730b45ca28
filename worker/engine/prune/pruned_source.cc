#include "worker/engine/prune/pruned_source.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <utility>

namespace qpruner::engine {
namespace {

// Positions of the `width` channels of each of `units`, in order.
std::vector<int64_t> Channels(const std::vector<int64_t>& units, int64_t width) {
  std::vector<int64_t> channels;
  channels.reserve(units.size() * width);
  for (int64_t unit : units) {
    for (int64_t i = 0; i < width; ++i) channels.push_back(unit * width + i);
  }
  return channels;
}

}  // namespace

PrunedSource::PrunedSource(WeightSource& base, PruningPlan plan)
    : base_(base), plan_(std::move(plan)), config_(base.config()) {
  TORCH_CHECK(static_cast<int64_t>(plan_.blocks.size()) == config_.num_blocks(), "The plan covers ",
              plan_.blocks.size(), " blocks, the model has ", config_.num_blocks());
  for (int64_t block = 0; block < config_.num_blocks(); ++block) {
    BlockShape& shape = config_.blocks[block];
    const int64_t readers = shape.num_heads / shape.num_kv_heads;
    shape.num_kv_heads = static_cast<int64_t>(plan_.blocks[block].kv_heads.size());
    shape.num_heads = shape.num_kv_heads * readers;
    shape.intermediate_size = static_cast<int64_t>(plan_.blocks[block].mlp_channels.size());
  }
}

BlockWeights PrunedSource::Block(int64_t block) {
  BlockWeights weights = base_.Block(block);
  const BlockShape& original = base_.config().blocks[block];
  if (config_.blocks[block] == original) return weights;

  at::NoGradGuard no_grad;
  const int64_t head_dim = config_.head_dim;
  const int64_t readers = original.num_heads / original.num_kv_heads;
  const BlockPlan& kept = plan_.blocks[block];
  const auto index = [&](const std::vector<int64_t>& channels) {
    return at::tensor(channels, at::kLong).to(base_.device());
  };
  const at::Tensor key_value = index(Channels(kept.kv_heads, head_dim));
  const at::Tensor query = index(Channels(kept.kv_heads, readers * head_dim));
  const at::Tensor mlp = index(kept.mlp_channels);

  const auto prune = [&](LinearKind kind, const at::Tensor& channels) {
    const bool rows = PrunesRows(kind);
    weights.weight[kind] = weights.weight[kind].index_select(rows ? 0 : 1, channels);
    // An input channel has no bias of its own.
    if (rows && weights.bias[kind].defined()) {
      weights.bias[kind] = weights.bias[kind].index_select(0, channels);
    }
  };
  prune(LinearKind::kQuery, query);
  prune(LinearKind::kKey, key_value);
  prune(LinearKind::kValue, key_value);
  prune(LinearKind::kOutput, query);
  prune(LinearKind::kGate, mlp);
  prune(LinearKind::kUp, mlp);
  prune(LinearKind::kDown, mlp);
  return weights;
}

}  // namespace qpruner::engine
