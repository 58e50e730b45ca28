// What it costs to change one block alone: mean KL(model || model with that block changed), in nats
// a token, over all positions that have a target.
#ifndef QPRUNER_WORKER_ENGINE_SCORE_VARIANT_DIVERGENCE_H_
#define QPRUNER_WORKER_ENGINE_SCORE_VARIANT_DIVERGENCE_H_

#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Takes one variant of a block: weights of the given shape.
using VariantVisitor = std::function<void(const BlockShape& shape, const BlockWeights& weights)>;
// Calls `visit` for each variant of `block`, one after the other, so that one exists at a time.
using VariantMaker =
    std::function<void(int64_t block, const BlockWeights& weights, const VariantVisitor& visit)>;

// Where a measurement that was interrupted goes on.
struct VariantProgress {
  // Those before have no variants.
  int64_t first_block = 0;
  // Called with the divergences of each block's variants once they are known; may be empty.
  std::function<void(int64_t block, const std::vector<double>& divergences)> on_block;
};

// divergences[block][variant], in the order of visiting. Never negative: what rounding leaves below
// 0 is 0. They do not depend on `progress`.
//
// Each block's input is kept on the host, so a variant starts at its own block. The variants of one
// block go through the later blocks together: each of those is loaded once for all of them.
// Hidden states of all samples for (blocks + variants of a block) wait in a HostStore.
// `on_progress(fraction)` after every block visit; may be empty.
std::vector<std::vector<double>> MeasureVariants(
    WeightSource& source, const std::vector<TokenBatch>& batches, const VariantMaker& variants,
    const std::function<void(double fraction)>& on_progress = {},
    const VariantProgress& progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SCORE_VARIANT_DIVERGENCE_H_
