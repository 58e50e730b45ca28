#include "worker/engine/prune/pruning_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::engine {
namespace {

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

// LLM-Pruner's int(C * (1 - ratio)), in doubles too.
int64_t Truncated(double ratio, int64_t count) {
  return static_cast<int64_t>((1 - ratio) * static_cast<double>(count));
}

// Whole heads that fit into the share that goes. The slack takes in products such as 0.29 * 100
// that fall just short of a whole number.
int64_t RemovedHeads(int64_t count, double ratio) {
  return static_cast<int64_t>(std::floor(ratio * static_cast<double>(count) + 1e-9));
}

// The multiple of `alignment` nearest to `kept` of `width`, at least one; `width` if nothing goes.
// Without alignment `kept` is truncated, as LLM-Pruner's int(C * (1 - ratio)), in doubles too.
int64_t Aligned(double kept, int64_t width, int64_t alignment) {
  if (kept >= static_cast<double>(width)) return width;
  const int64_t multiples = alignment == 1 ? static_cast<int64_t>(kept)
                                           : std::llround(kept / static_cast<double>(alignment));
  return std::min(width, alignment * std::max<int64_t>(1, multiples));
}

KeptCounts CountsOf(const BlockPlan& block) {
  return {static_cast<int64_t>(block.kv_heads.size()),
          static_cast<int64_t>(block.mlp_channels.size())};
}

std::vector<KeptCounts> CountsOf(const PruningPlan& plan) {
  std::vector<KeptCounts> counts;
  for (const BlockPlan& block : plan.blocks) counts.push_back(CountsOf(block));
  return counts;
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

BlockRange PrunedBlocks(const ModelConfig& config, const PruningOptions& options) {
  if (options.layout == PruningLayout::kUniform) return {0, config.num_blocks()};
  return {options.first_block, options.last_block.value_or(config.num_blocks() - 1)};
}

BlockShape PrunedShape(const BlockShape& shape, const KeptCounts& counts) {
  BlockShape pruned = shape;
  pruned.num_heads = shape.num_heads / shape.num_kv_heads * counts.kv_heads;
  pruned.num_kv_heads = counts.kv_heads;
  pruned.intermediate_size = counts.mlp_channels;
  return pruned;
}

PruningPlan FullPlan(const ModelConfig& config) {
  PruningPlan plan;
  for (const BlockShape& shape : config.blocks) {
    plan.blocks.push_back({Everything(shape.num_kv_heads), Everything(shape.intermediate_size)});
  }
  return plan;
}

ModelConfig PrunedConfig(const ModelConfig& config, const std::vector<KeptCounts>& counts) {
  ModelConfig pruned = config;
  for (size_t block = 0; block < counts.size(); ++block) {
    pruned.blocks[block] = PrunedShape(config.blocks[block], counts[block]);
  }
  return pruned;
}

ModelConfig PrunedConfig(const ModelConfig& config, const PruningPlan& plan) {
  return PrunedConfig(config, CountsOf(plan));
}

int64_t KeptKvHeads(int64_t count, double ratio) {
  return std::max<int64_t>(1, count - RemovedHeads(count, ratio));
}

int64_t KeptMlpChannels(int64_t width, double ratio, int64_t alignment) {
  return Aligned((1 - ratio) * static_cast<double>(width), width, alignment);
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
  if (options.selection != PruningSelection::kLocal && options.layout != PruningLayout::kPerLayer) {
    return absl::InvalidArgumentError(
        "pruning.selection GLOBAL and GLOBAL_PER_KIND need pruning.layout PER_LAYER: blocks come "
        "out with different shapes");
  }
  if (options.steps < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("pruning.steps must be at least 1, not ", options.steps));
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

namespace {

std::vector<KeptCounts> CountLocally(const ModelConfig& config, const PruningOptions& options,
                                     double ratio, int64_t alignment) {
  BlockShape smallest = config.blocks.front();
  for (const BlockShape& shape : config.blocks) {
    smallest.num_kv_heads = std::min(smallest.num_kv_heads, shape.num_kv_heads);
    smallest.intermediate_size = std::min(smallest.intermediate_size, shape.intermediate_size);
  }
  const BlockRange range = PrunedBlocks(config, options);
  std::vector<KeptCounts> counts = CountsOf(FullPlan(config));
  for (int64_t block = range.first; block < range.last; ++block) {
    const BlockShape& from =
        options.layout == PruningLayout::kUniform ? smallest : config.blocks[block];
    counts[block] = {KeptKvHeads(from.num_kv_heads, ratio),
                     KeptMlpChannels(from.intermediate_size, ratio, alignment)};
  }
  return counts;
}

// One group in a pool.
struct Candidate {
  double score;
  int64_t* kept;  // The count that its removal lowers.
};

// Removes the lowest-scoring of what the pool still has until `kept` of it are left.
void RemoveLowest(std::vector<Candidate>& pool, int64_t kept) {
  // Of equal scores the earlier stays.
  std::stable_sort(pool.begin(), pool.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  for (size_t i = static_cast<size_t>(std::max<int64_t>(0, kept)); i < pool.size(); ++i) {
    // A block without heads or channels would be no block.
    if (*pool[i].kept > 1) --*pool[i].kept;
  }
}

// One threshold for all groups of a pool. How many it takes is a share of all the groups there were
// before the first step, as in LLM-Pruner's global pruning.
std::vector<KeptCounts> CountGlobally(const ModelConfig& config, const PruningPlan& current,
                                      const std::vector<BlockImportance>& importance,
                                      const PruningOptions& options, double ratio) {
  const BlockRange range = PrunedBlocks(config, options);
  std::vector<KeptCounts> counts = CountsOf(current);
  std::vector<Candidate> heads, channels;
  int64_t head_total = 0, channel_total = 0;
  const auto add = [](std::vector<Candidate>& pool, const at::Tensor& scores, int64_t* kept) {
    const at::Tensor contiguous = scores.contiguous();
    const double* values = contiguous.const_data_ptr<double>();
    for (int64_t i = 0; i < contiguous.numel(); ++i) pool.push_back({values[i], kept});
  };
  for (int64_t block = range.first; block < range.last; ++block) {
    head_total += config.blocks[block].num_kv_heads;
    channel_total += config.blocks[block].intermediate_size;
    add(heads, importance[block].kv_heads, &counts[block].kv_heads);
    add(channels, importance[block].mlp_channels, &counts[block].mlp_channels);
  }
  if (options.selection == PruningSelection::kGlobal) {
    heads.insert(heads.end(), channels.begin(), channels.end());
    RemoveLowest(heads, Truncated(ratio, head_total + channel_total));
  } else {
    RemoveLowest(heads, head_total - RemovedHeads(head_total, ratio));
    RemoveLowest(channels, Truncated(ratio, channel_total));
  }
  return counts;
}

}  // namespace

absl::Status CheckImportance(const ModelConfig& config,
                             const std::vector<BlockImportance>& importance,
                             const BlockRange& range) {
  if (static_cast<int64_t>(importance.size()) != config.num_blocks()) {
    return absl::InvalidArgumentError(absl::StrCat("Importance is given for ", importance.size(),
                                                   " blocks, the model has ", config.num_blocks()));
  }
  for (int64_t block = range.first; block < range.last; ++block) {
    RETURN_IF_ERROR(CheckScores(importance[block].kv_heads, config.blocks[block].num_kv_heads,
                                "key/value heads", block));
    RETURN_IF_ERROR(CheckScores(importance[block].mlp_channels,
                                config.blocks[block].intermediate_size, "MLP channels", block));
  }
  return absl::OkStatus();
}

std::vector<KeptCounts> CountKept(const ModelConfig& config, const PruningPlan& current,
                                  const std::vector<BlockImportance>& importance,
                                  const PruningOptions& options, int64_t step) {
  const bool last = step == options.steps;
  // In this order, as LLM-Pruner's linear schedule: a product of another order can truncate to one
  // channel more or less.
  const double ratio =
      options.ratio * (static_cast<double>(step) / static_cast<double>(options.steps));
  const std::vector<KeptCounts> before = CountsOf(current);
  std::vector<KeptCounts> counts;
  if (options.selection == PruningSelection::kLocal) {
    counts = CountLocally(config, options, ratio, last ? options.alignment : 1);
    // The last width may have been rounded up beyond what a step on the way comes to.
    const std::vector<KeptCounts> end =
        CountLocally(config, options, options.ratio, options.alignment);
    for (size_t block = 0; block < counts.size(); ++block) {
      counts[block].mlp_channels = std::max(counts[block].mlp_channels, end[block].mlp_channels);
    }
  } else {
    counts = CountGlobally(config, current, importance, options, ratio);
    const BlockRange range = PrunedBlocks(config, options);
    for (int64_t block = range.first; last && block < range.last; ++block) {
      const int64_t width = config.blocks[block].intermediate_size;
      int64_t& kept = counts[block].mlp_channels;
      kept = Aligned(static_cast<double>(kept), width, options.alignment);
    }
  }
  for (size_t block = 0; block < counts.size(); ++block) {
    counts[block].kv_heads = std::min(counts[block].kv_heads, before[block].kv_heads);
    int64_t& channels = counts[block].mlp_channels;
    // Rounding up may ask for more than is left after earlier steps.
    if (channels > before[block].mlp_channels) {
      channels = before[block].mlp_channels / options.alignment * options.alignment;
      if (channels == 0) channels = before[block].mlp_channels;
    }
  }
  return counts;
}

absl::StatusOr<BlockPlan> KeepHighest(int64_t block, const BlockPlan& current,
                                      const BlockImportance& importance, const KeptCounts& counts) {
  BlockPlan kept = current;
  const auto keep = [&](const at::Tensor& scores, int64_t count, absl::string_view what,
                        std::vector<int64_t>& units) -> absl::Status {
    const auto size = static_cast<int64_t>(units.size());
    if (count == size) return absl::OkStatus();
    RETURN_IF_ERROR(CheckScores(scores, size, what, block));
    std::vector<int64_t> chosen = Highest(scores, count);
    for (int64_t& unit : chosen) unit = units[unit];
    units = std::move(chosen);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(keep(importance.kv_heads, counts.kv_heads, "key/value heads", kept.kv_heads));
  RETURN_IF_ERROR(
      keep(importance.mlp_channels, counts.mlp_channels, "MLP channels", kept.mlp_channels));
  return kept;
}

absl::StatusOr<PruningPlan> KeepHighest(const PruningPlan& current,
                                        const std::vector<BlockImportance>& importance,
                                        const std::vector<KeptCounts>& counts) {
  const size_t block_count = current.blocks.size();
  if (importance.size() != block_count || counts.size() != block_count) {
    return absl::InvalidArgumentError(absl::StrCat("Importance is given for ", importance.size(),
                                                   " blocks, the model has ", block_count));
  }
  PruningPlan plan;
  for (size_t block = 0; block < block_count; ++block) {
    ASSIGN_OR_RETURN(BlockPlan kept, KeepHighest(static_cast<int64_t>(block), current.blocks[block],
                                                 importance[block], counts[block]));
    plan.blocks.push_back(std::move(kept));
  }
  return plan;
}

absl::StatusOr<PruningPlan> MakePruningPlan(const ModelConfig& config,
                                            const std::vector<BlockImportance>& importance,
                                            const PruningOptions& options) {
  RETURN_IF_ERROR(CheckPruning(config, options));
  const PruningPlan full = FullPlan(config);
  if (options.ratio == 0) return full;
  PruningOptions once = options;
  once.steps = 1;
  RETURN_IF_ERROR(CheckImportance(config, importance, PrunedBlocks(config, options)));
  return KeepHighest(full, importance, CountKept(config, full, importance, once, 1));
}

}  // namespace qpruner::engine
