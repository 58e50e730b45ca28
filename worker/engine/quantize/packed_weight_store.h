// Weights that were quantized ahead, by a method that needs more than the weight itself.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_PACKED_WEIGHT_STORE_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_PACKED_WEIGHT_STORE_H_

#include <cstdint>
#include <optional>

#include "worker/engine/model/linear_kind.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

// Immutable and thread-safe.
class PackedWeightStore {
 public:
  virtual ~PackedWeightStore() = default;
  // The linear in `format`, of the shape it has in the model; nullopt where it is to be rounded to
  // nearest.
  virtual std::optional<PackedWeight> Find(int64_t block, LinearKind kind,
                                           const Format& format) const = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_PACKED_WEIGHT_STORE_H_
