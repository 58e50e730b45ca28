// The tensors of a model under the names a Hugging Face checkpoint gives them.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_CHECKPOINT_TENSORS_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_CHECKPOINT_TENSORS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Looks tensors up in a source. Holds the block it was last asked for, so that names in the order
// of a checkpoint cost one load a block. Not thread-safe.
class CheckpointTensors {
 public:
  // `source` must outlive this. `linears`: those whose weights will be asked for.
  explicit CheckpointTensors(WeightSource& source, const LinearSet& linears = AllLinears())
      : source_(source), linears_(linears) {}

  // `name` as in ExpectedTensors(source.config()). Throws c10::Error for any other.
  at::Tensor Get(const std::string& name);

 private:
  WeightSource& source_;
  const LinearSet linears_;
  int64_t block_ = -1;
  BlockWeights weights_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_CHECKPOINT_TENSORS_H_
