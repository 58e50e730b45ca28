// A base with its adapter merged: W + scale B A for each linear.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_MERGED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_MERGED_SOURCE_H_

#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/wrapped_source.h"

namespace qpruner::engine {

// For evaluation and export. The sum is computed in float32 and rounded once to the base's dtype.
class MergedSource final : public WrappedSource {
 public:
  // Both must outlive this. The adapter must fit base.config().
  MergedSource(WeightSource& base, const LoraAdapter& adapter)
      : WrappedSource(base), adapter_(adapter) {}

  BlockWeights Block(int64_t block) override;

 private:
  const LoraAdapter& adapter_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_MERGED_SOURCE_H_
