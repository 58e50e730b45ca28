#include "worker/engine/quantize/quantized_source.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::engine {

absl::StatusOr<std::unique_ptr<QuantizedSource>> QuantizedSource::Create(
    WeightSource& base, FormatAssignment assignment, Keep keep, const PackedWeightStore* store) {
  RETURN_IF_ERROR(CheckAssignment(base.config(), assignment));
  return std::unique_ptr<QuantizedSource>(
      new QuantizedSource(base, std::move(assignment), keep, store));
}

at::Tensor QuantizedSource::Stored(const at::Tensor& fixed) const {
  return fixed.defined() ? fixed.to(at::kBFloat16).to(fixed.scalar_type()) : fixed;
}

BlockWeights QuantizedSource::BlockWith(const LinearSet& wanted, int64_t block) {
  PerLinear<std::optional<PackedWeight>> found;
  LinearSet missing;
  for (LinearKind kind : kLinearKinds) {
    if (!wanted[kind]) continue;
    found[kind] = Found(block, kind);
    missing[kind] = !found[kind].has_value();
  }
  BlockWeights weights = base().BlockWith(missing, block);
  for (LinearKind kind : kLinearKinds) {
    at::Tensor& weight = weights.weight[kind];
    if (missing[kind]) found[kind] = Pack(block, kind, weight);
    weight = wanted[kind] ? Dequantize(*found[kind], dtype(), device()) : at::Tensor();
    weights.bias[kind] = Stored(weights.bias[kind]);
  }
  for (at::Tensor* norm :
       {&weights.attention_norm, &weights.mlp_norm, &weights.query_norm, &weights.key_norm}) {
    *norm = Stored(*norm);
  }
  return weights;
}

at::Tensor QuantizedSource::Embedding() {
  if (!embedding_.defined()) embedding_ = Stored(base().Embedding());
  return embedding_;
}

at::Tensor QuantizedSource::FinalNorm() { return Stored(base().FinalNorm()); }

at::Tensor QuantizedSource::Head() {
  if (config().tie_word_embeddings) return Embedding();
  if (!head_.defined()) head_ = Stored(base().Head());
  return head_;
}

PackedWeight QuantizedSource::Packed(int64_t block, LinearKind kind) {
  if (auto found = Found(block, kind)) return *std::move(found);
  LinearSet wanted;
  wanted[kind] = true;
  return Pack(block, kind, base().BlockWith(wanted, block).weight[kind]);
}

bool QuantizedSource::InStore(int64_t block, LinearKind kind) const {
  return store_ != nullptr &&
         store_->Find(block, kind, assignment_.at(LinearName(block, kind))).has_value();
}

void QuantizedSource::SetPacked(int64_t block, LinearKind kind, PackedWeight packed) {
  const std::string name = LinearName(block, kind);
  const std::vector<int64_t> shape =
      LinearShape(config(), config().blocks.at(static_cast<size_t>(block)), kind);
  TORCH_CHECK_VALUE(
      packed.format == assignment_.at(name) && packed.rows == shape[0] && packed.cols == shape[1],
      name, " is assigned ", FormatName(assignment_.at(name)), " of [", shape[0], ", ", shape[1],
      "], not ", FormatName(packed.format), " of [", packed.rows, ", ", packed.cols, "]");
  packed_[{block, kind}] = Waiting(std::move(packed));
}

PackedWeight QuantizedSource::Waiting(PackedWeight packed) {
  for (auto& [name, tensor] : packed.tensors) tensor = waiting_.Keep(tensor);
  return packed;
}

std::optional<PackedWeight> QuantizedSource::Found(int64_t block, LinearKind kind) const {
  if (const auto kept = packed_.find({block, kind}); kept != packed_.end()) return kept->second;
  // The store is the memory: nothing is kept twice.
  return store_ == nullptr ? std::nullopt
                           : store_->Find(block, kind, assignment_.at(LinearName(block, kind)));
}

PackedWeight QuantizedSource::Pack(int64_t block, LinearKind kind, const at::Tensor& weight) {
  const std::string name = LinearName(block, kind);
  PackedWeight packed;
  try {
    packed = Quantize(weight, assignment_.at(name));
  } catch (c10::Error& error) {
    error.add_context(absl::StrCat("while quantizing ", name));
    throw;
  }
  if (keep_ == Keep::kPacked) packed_[{block, kind}] = packed = Waiting(std::move(packed));
  return packed;
}

}  // namespace qpruner::engine
