// A model seen through the storage formats of its weights.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_QUANTIZED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_QUANTIZED_SOURCE_H_

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "worker/engine/model/host_store.h"
#include "worker/engine/model/wrapped_source.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/quantize/packed_weight_store.h"

namespace qpruner::engine {

// Gives the weights of another source as they come back from storage: linears quantized and
// dequantized, embedding, head, norms and biases rounded to bfloat16. So a forward pass over it
// measures the model that is stored. Tensors have the base's dtype and device. Not thread-safe.
class QuantizedSource final : public WrappedSource {
 public:
  enum class Keep {
    // Quantizes a block each time it is asked for: no memory beyond the block in work. Right for a
    // single pass over the model.
    kNothing,
    // Keeps each packed weight once it is made, on the host in a HostStore: about PackedBytes.
    // Right when blocks are visited again, or when the packed weights are written out as well. The
    // base's linears are then read once.
    kPacked,
  };

  // What `store` has is taken from there, all else rounded to nearest; null: everything is. `base`
  // and `store` must outlive this. INVALID_ARGUMENT: as CheckAssignment.
  static absl::StatusOr<std::unique_ptr<QuantizedSource>> Create(
      WeightSource& base, FormatAssignment assignment, Keep keep = Keep::kPacked,
      const PackedWeightStore* store = nullptr);

  // Throw c10::Error where a weight cannot be quantized (see Quantize); the message names it.
  BlockWeights Block(int64_t block) override { return BlockWith(AllLinears(), block); }
  BlockWeights BlockWith(const LinearSet& wanted, int64_t block) override;
  at::Tensor Embedding() override;
  at::Tensor FinalNorm() override;
  at::Tensor Head() override;

  const FormatAssignment& assignment() const { return assignment_; }
  // One linear as it is stored.
  PackedWeight Packed(int64_t block, LinearKind kind);
  // Whether that comes from the store.
  bool InStore(int64_t block, LinearKind kind) const;
  // Stores `packed` for one linear instead of what the base's weight quantizes to: LoftQ changes
  // the weight before it quantizes it. Throws c10::Error if format or shape are not the assigned
  // ones.
  void SetPacked(int64_t block, LinearKind kind, PackedWeight packed);

 private:
  QuantizedSource(WeightSource& base, FormatAssignment assignment, Keep keep,
                  const PackedWeightStore* store)
      : WrappedSource(base), assignment_(std::move(assignment)), keep_(keep), store_(store) {}

  // What is kept or in the store: for it the base's weight is not needed.
  std::optional<PackedWeight> Found(int64_t block, LinearKind kind) const;
  // Quantizes the base's weight, and keeps the result if that is asked for.
  PackedWeight Pack(int64_t block, LinearKind kind, const at::Tensor& weight);
  at::Tensor Stored(const at::Tensor& fixed) const;
  PackedWeight Waiting(PackedWeight packed);

  const FormatAssignment assignment_;
  const Keep keep_;
  const PackedWeightStore* const store_;
  HostStore waiting_;  // Of the packed weights.
  std::map<std::pair<int64_t, LinearKind>, PackedWeight> packed_;
  // Rounded once: the largest tensors of a small model.
  at::Tensor embedding_;
  at::Tensor head_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_QUANTIZED_SOURCE_H_
