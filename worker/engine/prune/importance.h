// How much each prunable channel of a model matters.
//
// LLM-Pruner (Ma et al. 2023, arXiv 2305.11627, and its published code): with W a weight, g the
// gradient of the mean cross entropy over all samples, and a = sum_j g_j^2 / N the diagonal Fisher
// information from the gradients g_j of each sample's own mean cross entropy, each weight has a
// salience W g, W a W, or W g - W a W / 2; a channel's score adds up its weights' saliences.
#ifndef QPRUNER_WORKER_ENGINE_PRUNE_IMPORTANCE_H_
#define QPRUNER_WORKER_ENGINE_PRUNE_IMPORTANCE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

enum class ImportanceMethod {
  kL1,            // sum |W|
  kL2,            // sqrt(sum W^2)
  kTaylorFirst,   // sum |W g|
  kTaylorSecond,  // sum |W a W|
  kTaylorMixed,   // sum |W g - W a W / 2|
  kTaylorVector,  // |sum W g|
  kRandom,        // Uniform in [0, 1), from the seed: a control.
};

// How the scores of the linears that share a channel are joined.
enum class GroupReduction { kSum, kMean, kMax, kProduct, kFirst };

// Which query heads' scores are added to a key/value head's, where several read one.
enum class HeadFold {
  // Those that read it: {k g, .., k g + g - 1} for head k of groups of g.
  kReaders,
  // {k, k + n, k + 2 n, ..} for n key/value heads, as LLM-Pruner's code for Llama 3 does; deleted
  // are the readers all the same. To compare with its results.
  kLlmPruner,
};

struct ImportanceOptions {
  ImportanceMethod method = ImportanceMethod::kTaylorMixed;
  GroupReduction reduction = GroupReduction::kSum;
  HeadFold fold = HeadFold::kReaders;
  uint64_t seed = 42;  // kRandom only.
};

// Scores of one block's groups; higher means keep. float64, CPU.
struct BlockImportance {
  at::Tensor kv_heads;      // [num_kv_heads]: a key/value head with the query heads that read it.
  at::Tensor mlp_channels;  // [intermediate_size]
};

// Scores of one block's channels, linear by linear. float64, CPU. The output channels (rows) of
// query, key, value, gate and up, the input channels (columns) of output and down. Defined for each
// linear, except with kRandom, which has none.
using ChannelScores = PerLinear<at::Tensor>;

// Whether the pruned channels of `kind` are its rows (else its columns).
bool PrunesRows(LinearKind kind);

// Whether `method` needs samples.
bool NeedsGradients(ImportanceMethod method);

// Channel scores of every block. Of `batches`, every sample must have 2 tokens or more; they are
// not used unless NeedsGradients(method). How samples are divided into batches changes only speed
// and memory: the device holds one block, its activations for one batch, the sums of g and a of the
// block, and for second-order methods one sample's gradient of one linear at a time.
// `on_progress(fraction)` may be empty.
std::vector<ChannelScores> ScoreChannels(WeightSource& source,
                                         const std::vector<TokenBatch>& batches,
                                         ImportanceMethod method,
                                         const std::function<void(double)>& on_progress = {});

// Joins channel scores into group scores. The channels of the query heads that belong to one
// key/value head (`fold`) are first added up position by position, so that query and output match
// key and value; then the reduction over {query, key, value, output}; then the sum over the head's
// channels. MLP: the reduction over {gate, up, down}.
BlockImportance ReduceToGroups(const ModelConfig& config, const BlockShape& shape,
                               const ChannelScores& scores, GroupReduction reduction,
                               HeadFold fold = HeadFold::kReaders);

// Both of the above: one entry a block.
std::vector<BlockImportance> ScoreGroups(WeightSource& source,
                                         const std::vector<TokenBatch>& batches,
                                         const ImportanceOptions& options,
                                         const std::function<void(double)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_PRUNE_IMPORTANCE_H_
