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

struct PruningOptions {
  double ratio = 0;  // Of the key/value groups and of the MLP channels to remove, in [0, 1).
  PruningLayout layout = PruningLayout::kUniform;
  int64_t alignment = 32;             // Pruned MLP widths are multiples of this.
  int64_t first_block = 1;            // kPerLayer only.
  std::optional<int64_t> last_block;  // kPerLayer only. Default: the number of blocks - 1.
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
// one multiple, at most `width`. Ratio 0 keeps `width`, multiple or not.
int64_t KeptMlpChannels(int64_t width, double ratio, int64_t alignment);

// INVALID_ARGUMENT names the rule that `options` break for `config`. Needs no scores, so that a bad
// request is refused before any work.
absl::Status CheckPruning(const ModelConfig& config, const PruningOptions& options);

// Keeps the highest-scoring groups of each block (of equal scores, the earlier). With kUniform over
// blocks of different shapes every block goes to the counts of the smallest.
// INVALID_ARGUMENT: as CheckPruning, or scores that do not fit the model or are not finite.
absl::StatusOr<PruningPlan> MakePruningPlan(const ModelConfig& config,
                                            const std::vector<BlockImportance>& importance,
                                            const PruningOptions& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_PRUNE_PRUNING_PLAN_H_
