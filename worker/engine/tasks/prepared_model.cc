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
#include "worker/engine/model/host_store.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/model/prefetching_source.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/tasks/torch_guard.h"

namespace qpruner::engine {

namespace {

// Bytes of a head that is used in another place than in the mapped file: on another device, where
// the file has it quantized, or rounded (QuantizedSource).
int64_t HeadBytes(const Checkpoint& checkpoint, at::Device device) {
  const CheckpointTensor& head = checkpoint.tensor(
      checkpoint.config().tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  if (device.is_cpu() && head.in_place && head.dtype == DType::kBF16) return 0;
  return head.shape[0] * head.shape[1] * DTypeSize(head.dtype);
}

}  // namespace

at::ScalarType ComputeDType(at::Device device, at::ScalarType stored) {
  return device.is_cpu() ? at::kFloat : stored;
}

absl::StatusOr<MemoryPlan> PlanTask(const v1::Limits& limits, const Checkpoint& checkpoint,
                                    at::Device device, at::ScalarType compute,
                                    MemoryPlanOptions options) {
  options.element_bytes = static_cast<int64_t>(c10::elementSize(compute));
  options.on_host = device.is_cpu();
  options.head_bytes = HeadBytes(checkpoint, device);
  if (limits.has_device_memory_bytes()) {
    options.limit_bytes = limits.device_memory_bytes();
  } else if (device.is_cpu()) {
    options.limit_bytes = DefaultHostMemoryLimit();
  } else {
    // What earlier tasks have freed is the allocator's still, and would not count as free.
    c10::DeviceAllocator* const allocator = c10::getDeviceAllocator(device.type());
    allocator->emptyCache();
    // The rest is for the libraries' workspaces.
    const auto [free, total] = allocator->getMemoryInfo(device.index());
    options.limit_bytes = static_cast<int64_t>(0.9 * static_cast<double>(free));
  }
  ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(checkpoint.config(), options));
  AdaptHostAllocator(plan);
  return plan;
}

int64_t PrefixCacheBytes() { return std::min(int64_t{1} << 30, DefaultHostMemoryLimit() / 8); }

ReferenceStates StatesIn(const ReferenceShare& share, const at::Tensor& head,
                         at::ScalarType dtype) {
  ReferenceStates states{.hidden = share.hidden, .head = head};
  if (dtype == at::kFloat) return states;
  HostStore waiting = HostStore::Beside(head.device());
  for (at::Tensor& hidden : states.hidden) hidden = waiting.Keep(hidden.to(dtype));
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

std::unique_ptr<WeightSource> MakeResidentIn(int64_t free_bytes, WeightSource& source) {
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(source.dtype()));
  const MemoryCosts costs = EstimateMemory(source.config(), {.element_bytes = element_bytes});
  if (costs.model_bytes > free_bytes) return nullptr;
  return std::make_unique<MemoryWeightSource>(LoadIntoMemory(source));
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
  const std::string reference = absl::StrCat(input_dir, "/", kReferencePath);
  ASSIGN_OR_RETURN(const int64_t longest, ReadLongestSequence(reference));
  const auto plan = PlanTask(spec.limits(), *checkpoint, device_, ComputeDType(device_, stored),
                             {.longest_sequence = longest});
  // PREPARE has planned for more: this device has less, or others use it.
  if (!plan.ok()) return OutOfMemoryError(plan.status().message());
  model->plan = *plan;
  model->source =
      OpenStreamed(std::move(checkpoint), device_, ComputeDType(device_, stored), model->plan);
  ASSIGN_OR_RETURN(model->reference, ReadReference(reference, model->plan.batch_tokens));
  model->prefixes = std::make_unique<PrefixCache>(PrefixCacheBytes());
  model_ = std::move(model);
  key_ = std::move(key);
  return model_.get();
}

}  // namespace qpruner::engine
