#include "worker/engine/tasks/prepared_model.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/model/prefetching_source.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/spec_mapping.h"

namespace qpruner::engine {

at::ScalarType ComputeDType(at::Device device, at::ScalarType stored) {
  return device.is_cpu() ? at::kFloat : stored;
}

absl::StatusOr<MemoryPlan> PlanTask(const v1::Limits& limits, const ModelConfig& config,
                                    at::Device device, at::ScalarType compute,
                                    int64_t longest_sequence) {
  MemoryPlanOptions options;
  options.element_bytes = static_cast<int64_t>(c10::elementSize(compute));
  options.longest_sequence = longest_sequence;
  if (limits.has_device_memory_bytes()) {
    options.limit_bytes = limits.device_memory_bytes();
  } else if (device.is_cpu()) {
    options.limit_bytes = DefaultHostMemoryLimit();
  } else {
    // The rest is for the libraries' workspaces.
    const auto [free, total] =
        c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index());
    options.limit_bytes = static_cast<int64_t>(0.9 * static_cast<double>(free));
  }
  ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(config, options));
  AdaptHostAllocator(plan);
  return plan;
}

int64_t PrefixCacheBytes() { return std::min(int64_t{1} << 30, DefaultHostMemoryLimit() / 8); }

ReferenceStates StatesIn(const ReferenceShare& share, const at::Tensor& head,
                         at::ScalarType dtype) {
  ReferenceStates states{.hidden = {}, .head = head};
  for (const at::Tensor& hidden : share.hidden) states.hidden.push_back(hidden.to(dtype));
  return states;
}

ReferenceStates PreparedModel::States(const ReferenceShare& share, at::ScalarType dtype) const {
  return StatesIn(share, CastSource(*source, dtype).Head(), dtype);
}

std::unique_ptr<WeightSource> OpenStreamed(std::shared_ptr<const Checkpoint> checkpoint,
                                           at::Device device, at::ScalarType compute,
                                           const MemoryPlan& plan) {
  auto source = MakeCheckpointSource(std::move(checkpoint), device, compute);
  if (!plan.prefetch) return source;
  return std::make_unique<PrefetchingSource>(std::move(source));
}

std::unique_ptr<WeightSource> MakeResident(WeightSource& source, const MemoryPlan& plan) {
  if (!plan.resident()) return nullptr;
  return std::make_unique<MemoryWeightSource>(LoadIntoMemory(source));
}

std::unique_ptr<WeightSource> MakeResidentBeside(WeightSource& other, const MemoryPlan& plan) {
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(other.dtype()));
  const int64_t bytes = EstimateMemory(other.config(), element_bytes).model_bytes;
  if (plan.expected_bytes + bytes > plan.limit_bytes) return nullptr;
  return MakeResident(other, plan);
}

void PreparedModelCache::Clear() {
  model_.reset();
  key_.clear();
}

absl::StatusOr<const PreparedModel*> PreparedModelCache::Get(
    const v1::CompressionSpec& spec,
    const google::protobuf::RepeatedPtrField<internal::v1::ArtifactRef>& inputs,
    const std::string& input_dir) {
  std::string key;
  for (const auto& input : inputs) {
    if (absl::StartsWith(input.path(), absl::StrCat(kPreparedFolder, "/"))) {
      absl::StrAppend(&key, input.path(), "=", input.sha256(), "\n");
    }
  }
  if (key.empty()) {
    return absl::FailedPreconditionError("Task has no prepared model among its inputs");
  }
  if (model_ != nullptr && key == key_) return model_.get();
  Clear();
  auto model = std::make_unique<PreparedModel>();
  const std::string folder = absl::StrCat(input_dir, "/", kPreparedFolder);
  ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(folder));
  const at::ScalarType stored = ScalarTypeOf(checkpoint->tensor("model.embed_tokens.weight").dtype);
  if (absl::StrContains(key, absl::StrCat(kWeightDatabaseFolder, "/"))) {
    ASSIGN_OR_RETURN(const std::vector<Format> formats, CandidateFormats(spec));
    ASSIGN_OR_RETURN(model->weights,
                     WeightDatabase::Open(absl::StrCat(input_dir, "/", kWeightDatabaseFolder),
                                          checkpoint->config(), formats));
  }
  ASSIGN_OR_RETURN(
      model->plan,
      PlanTask(spec.limits(), checkpoint->config(), device_, ComputeDType(device_, stored),
               std::min<int64_t>(spec.evaluation().sequence_length(),
                                 checkpoint->config().max_position_embeddings)));
  model->source =
      OpenStreamed(std::move(checkpoint), device_, ComputeDType(device_, stored), model->plan);
  ASSIGN_OR_RETURN(model->reference, ReadReference(absl::StrCat(input_dir, "/", kReferencePath),
                                                   model->plan.batch_tokens));
  model->prefixes = std::make_unique<PrefixCache>(PrefixCacheBytes());
  model_ = std::move(model);
  key_ = std::move(key);
  return model_.get();
}

}  // namespace qpruner::engine
