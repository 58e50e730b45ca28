#include "worker/engine/prune/pruning_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::engine {
namespace {

// First and one past the last block to prune.
struct BlockRange {
  int64_t first = 0;
  int64_t last = 0;
};

BlockRange PrunedBlocks(const ModelConfig& config, const PruningOptions& options) {
  if (options.layout == PruningLayout::kUniform) return {0, config.num_blocks()};
  return {options.first_block, options.last_block.value_or(config.num_blocks() - 1)};
}

std::vector<int64_t> Everything(int64_t count) {
  std::vector<int64_t> indices(count);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

// The `kept` highest of `scores`, ascending by index.
std::vector<int64_t> Highest(const at::Tensor& scores, int64_t kept) {
  const at::Tensor contiguous = scores.contiguous();
  const double* values = contiguous.data_ptr<double>();
  std::vector<int64_t> order = Everything(scores.numel());
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return values[a] > values[b]; });
  order.resize(kept);
  std::sort(order.begin(), order.end());
  return order;
}

absl::Status CheckScores(const at::Tensor& scores, int64_t count, absl::string_view what,
                         int64_t block) {
  if (!scores.defined() || scores.dim() != 1 || scores.numel() != count ||
      scores.scalar_type() != at::kDouble || !scores.is_cpu()) {
    return absl::InvalidArgumentError(absl::StrCat("Importance of block ", block,
                                                   " does not fit the model: it must hold ", count,
                                                   " scores of ", what));
  }
  if (!at::isfinite(scores).all().item<bool>()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Importance of block ", block, " is not finite: a score of ", what,
                     " is NaN or infinite; check the weights and the calibration text"));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t KeptKvHeads(int64_t count, double ratio) {
  // The slack takes in products such as 0.29 * 100 that fall just short of a whole number.
  const auto removed = static_cast<int64_t>(std::floor(ratio * static_cast<double>(count) + 1e-9));
  return std::max<int64_t>(1, count - removed);
}

int64_t KeptMlpChannels(int64_t width, double ratio, int64_t alignment) {
  if (ratio == 0) return width;
  const double multiples =
      (1 - ratio) * static_cast<double>(width) / static_cast<double>(alignment);
  const int64_t nearest = alignment * std::max<int64_t>(1, std::llround(multiples));
  return std::min(width, nearest);
}

absl::Status CheckPruning(const ModelConfig& config, const PruningOptions& options) {
  if (!(options.ratio >= 0 && options.ratio < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("pruning.ratio must be in [0, 1), not ", options.ratio));
  }
  if (options.alignment < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("pruning.alignment must be at least 1, not ", options.alignment));
  }
  const BlockRange range = PrunedBlocks(config, options);
  if (options.layout == PruningLayout::kPerLayer &&
      !(0 <= range.first && range.first < range.last && range.last <= config.num_blocks())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pruning.first_block and pruning.last_block must satisfy 0 <= first_block < last_block <= ",
        config.num_blocks(),
        " (the model's blocks; last_block is one past the last pruned one), not ", range.first,
        " and ", range.last));
  }
  if (options.ratio == 0) return absl::OkStatus();
  for (int64_t block = range.first; block < range.last; ++block) {
    const int64_t width = config.blocks[block].intermediate_size;
    if (options.alignment > width) {
      return absl::InvalidArgumentError(
          absl::StrCat("pruning.alignment must not exceed the MLP width, which is ", width,
                       " in block ", block, ", not ", options.alignment));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PruningPlan> MakePruningPlan(const ModelConfig& config,
                                            const std::vector<BlockImportance>& importance,
                                            const PruningOptions& options) {
  RETURN_IF_ERROR(CheckPruning(config, options));
  if (static_cast<int64_t>(importance.size()) != config.num_blocks()) {
    return absl::InvalidArgumentError(absl::StrCat("Importance is given for ", importance.size(),
                                                   " blocks, the model has ", config.num_blocks()));
  }
  const BlockRange range = PrunedBlocks(config, options);
  const bool uniform = options.layout == PruningLayout::kUniform;
  BlockShape smallest = config.blocks.front();
  for (const BlockShape& shape : config.blocks) {
    smallest.num_kv_heads = std::min(smallest.num_kv_heads, shape.num_kv_heads);
    smallest.intermediate_size = std::min(smallest.intermediate_size, shape.intermediate_size);
  }

  PruningPlan plan;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    const BlockShape& shape = config.blocks[block];
    BlockPlan& kept = plan.blocks.emplace_back();
    if (options.ratio == 0 || block < range.first || block >= range.last) {
      kept = {Everything(shape.num_kv_heads), Everything(shape.intermediate_size)};
      continue;
    }
    const BlockImportance& scores = importance[block];
    RETURN_IF_ERROR(CheckScores(scores.kv_heads, shape.num_kv_heads, "key/value heads", block));
    RETURN_IF_ERROR(
        CheckScores(scores.mlp_channels, shape.intermediate_size, "MLP channels", block));
    const BlockShape& from = uniform ? smallest : shape;
    kept.kv_heads = Highest(scores.kv_heads, KeptKvHeads(from.num_kv_heads, options.ratio));
    kept.mlp_channels =
        Highest(scores.mlp_channels,
                KeptMlpChannels(from.intermediate_size, options.ratio, options.alignment));
  }
  return plan;
}

}  // namespace qpruner::engine
