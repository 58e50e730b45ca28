// Which heads and channels stay.
#ifndef QPRUNER_WORKER_ENGINE_PRUNE_PRUNING_PLAN_H_
#define QPRUNER_WORKER_ENGINE_PRUNE_PRUNING_PLAN_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/prune/importance.h"

namespace qpruner::engine {

enum class PruningLayout {
  kUniform,   // Every block is pruned to the same shape.
  kPerLayer,  // Only blocks first_block .. last_block - 1 are pruned.
};

// Whom a group's score is compared to.
enum class PruningSelection {
  kLocal,          // The groups of its block and kind: every pruned block loses the same share.
  kGlobal,         // All groups of all pruned blocks, heads and channels in one pool.
  kGlobalPerKind,  // All groups of its kind in all pruned blocks.
};

struct PruningOptions {
  double ratio = 0;  // Of the key/value groups and of the MLP channels to remove, in [0, 1).
  PruningLayout layout = PruningLayout::kUniform;
  int64_t alignment = 32;             // Pruned MLP widths are multiples of this.
  int64_t first_block = 1;            // kPerLayer only.
  std::optional<int64_t> last_block;  // kPerLayer only. Default: the number of blocks - 1.
  PruningSelection selection = PruningSelection::kLocal;  // Global ones: kPerLayer only.
  int64_t steps = 1;  // Between which scores are measured again (iterative_pruning.h).
};

// What one block keeps: indices into the unpruned block, ascending.
struct BlockPlan {
  std::vector<int64_t> kv_heads;
  std::vector<int64_t> mlp_channels;
};

struct PruningPlan {
  std::vector<BlockPlan> blocks;  // One a block, also for blocks that keep everything.
};

// Key/value heads kept of `count`: count - floor(ratio count), at least 1. Whole heads are few, so
// rounding down never removes more than was asked for.
int64_t KeptKvHeads(int64_t count, double ratio);

// MLP channels kept of `width`: the multiple of `alignment` nearest to (1 - ratio) width, at least
// one multiple, at most `width`; with alignment 1 that product truncated, LLM-Pruner's rule. Ratio
// 0 keeps `width`, multiple or not.
int64_t KeptMlpChannels(int64_t width, double ratio, int64_t alignment);

// INVALID_ARGUMENT names the rule that `options` break for `config`. Needs no scores, so that a bad
// request is refused before any work.
absl::Status CheckPruning(const ModelConfig& config, const PruningOptions& options);

// First and one past the last block that `options` prune.
struct BlockRange {
  int64_t first = 0;
  int64_t last = 0;

  bool contains(int64_t block) const { return first <= block && block < last; }
};
BlockRange PrunedBlocks(const ModelConfig& config, const PruningOptions& options);

// How many groups of each kind a block keeps.
struct KeptCounts {
  int64_t kv_heads = 0;
  int64_t mlp_channels = 0;

  bool operator==(const KeptCounts&) const = default;
};

// `shape` with as many groups as `counts` says.
BlockShape PrunedShape(const BlockShape& shape, const KeptCounts& counts);

// The plan that keeps everything.
PruningPlan FullPlan(const ModelConfig& config);

// `config` with the shapes that `plan`, made for it, or counts of each block leave.
ModelConfig PrunedConfig(const ModelConfig& config, const PruningPlan& plan);
ModelConfig PrunedConfig(const ModelConfig& config, const std::vector<KeptCounts>& counts);

// What each block keeps after step `step` of options.steps, counted from 1: the share removed grows
// linearly. `current` is the plan so far and `importance` the scores of what it keeps, in its
// order; only global selection looks at them. With kUniform over blocks of different shapes every
// block goes to the counts of the smallest. Widths are aligned after the last step.
std::vector<KeptCounts> CountKept(const ModelConfig& config, const PruningPlan& current,
                                  const std::vector<BlockImportance>& importance,
                                  const PruningOptions& options, int64_t step);

// INVALID_ARGUMENT: scores of a block in `range` do not fit `config`, the model that was scored, or
// are not finite.
absl::Status CheckImportance(const ModelConfig& config,
                             const std::vector<BlockImportance>& importance,
                             const BlockRange& range);

// Of what `current` keeps of `block`, the highest-scoring groups (of equal scores, the earlier).
// `importance` is that of what it keeps. Counts must not exceed what it keeps.
// INVALID_ARGUMENT: scores that do not fit the plan or are not finite.
absl::StatusOr<BlockPlan> KeepHighest(int64_t block, const BlockPlan& current,
                                      const BlockImportance& importance, const KeptCounts& counts);
// The same of every block.
absl::StatusOr<PruningPlan> KeepHighest(const PruningPlan& current,
                                        const std::vector<BlockImportance>& importance,
                                        const std::vector<KeptCounts>& counts);

// All at once: options.steps is not looked at. INVALID_ARGUMENT: as CheckPruning or KeepHighest.
absl::StatusOr<PruningPlan> MakePruningPlan(const ModelConfig& config,
                                            const std::vector<BlockImportance>& importance,
                                            const PruningOptions& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_PRUNE_PRUNING_PLAN_H_
