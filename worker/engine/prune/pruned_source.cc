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
    : WrappedSource(base), plan_(std::move(plan)), config_(PrunedConfig(base.config(), plan_)) {
  TORCH_CHECK(static_cast<int64_t>(plan_.blocks.size()) == config_.num_blocks(), "The plan covers ",
              plan_.blocks.size(), " blocks, the model has ", config_.num_blocks());
}

BlockWeights PruneBlock(const ModelConfig& config, const BlockShape& shape, BlockWeights weights,
                        const BlockPlan& kept) {
  at::NoGradGuard no_grad;
  const int64_t head_dim = config.head_dim;
  const int64_t readers = shape.num_heads / shape.num_kv_heads;
  const at::Device device = weights.attention_norm.device();
  const auto prune = [&](LinearKind kind, const std::vector<int64_t>& channels) {
    const at::Tensor index = at::tensor(channels, at::kLong).to(device);
    const bool rows = PrunesRows(kind);
    weights.weight[kind] = weights.weight[kind].index_select(rows ? 0 : 1, index);
    // An input channel has no bias of its own.
    if (rows && weights.bias[kind].defined()) {
      weights.bias[kind] = weights.bias[kind].index_select(0, index);
    }
  };
  if (static_cast<int64_t>(kept.kv_heads.size()) != shape.num_kv_heads) {
    const std::vector<int64_t> query = Channels(kept.kv_heads, readers * head_dim);
    const std::vector<int64_t> key_value = Channels(kept.kv_heads, head_dim);
    prune(LinearKind::kQuery, query);
    prune(LinearKind::kKey, key_value);
    prune(LinearKind::kValue, key_value);
    prune(LinearKind::kOutput, query);
  }
  if (static_cast<int64_t>(kept.mlp_channels.size()) != shape.intermediate_size) {
    prune(LinearKind::kGate, kept.mlp_channels);
    prune(LinearKind::kUp, kept.mlp_channels);
    prune(LinearKind::kDown, kept.mlp_channels);
  }
  return weights;
}

BlockWeights PrunedSource::Block(int64_t block) {
  return PruneBlock(config_, base().config().blocks[block], base().Block(block),
                    plan_.blocks[block]);
}

}  // namespace qpruner::engine
