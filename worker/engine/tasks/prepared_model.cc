#include "worker/engine/tasks/prepared_model.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/spec_mapping.h"

namespace qpruner::engine {

at::ScalarType ComputeDType(at::Device device, at::ScalarType stored) {
  return device.is_cpu() ? at::kFloat : stored;
}

int64_t MemoryLimit(at::Device device) {
  if (!device.is_cpu()) return 0;
  return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE) / 4;
}

int64_t PrefixCacheBytes() { return std::min(int64_t{1} << 30, MemoryLimit(at::kCPU) / 4); }

ReferenceStates PreparedModel::States(const ReferenceShare& share, at::ScalarType dtype) const {
  return {share.hidden, source->Head().to(dtype)};
}

std::unique_ptr<WeightSource> MakeResident(WeightSource& source) {
  const int64_t bytes =
      ParameterCount(source.config()) * static_cast<int64_t>(c10::elementSize(source.dtype()));
  if (bytes > MemoryLimit(source.device())) return nullptr;
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
  model->source =
      MakeCheckpointSource(std::move(checkpoint), device_, ComputeDType(device_, stored));
  ASSIGN_OR_RETURN(model->reference, ReadReference(absl::StrCat(input_dir, "/", kReferencePath)));
  model->prefixes = std::make_unique<PrefixCache>(PrefixCacheBytes());
  model_ = std::move(model);
  key_ = std::move(key);
  return model_.get();
}

}  // namespace qpruner::engine
