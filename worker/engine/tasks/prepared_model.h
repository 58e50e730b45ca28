// The model that PREPARE made, as TRIAL and FINALIZE use it.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_PREPARED_MODEL_H_
#define QPRUNER_WORKER_ENGINE_TASKS_PREPARED_MODEL_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/calibrate/weight_database.h"
#include "worker/engine/evaluate/prefix_cache.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/memory_plan.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/tasks/reference_file.h"

namespace qpruner::engine {

// Names of PREPARE's artifacts.
inline constexpr char kPreparedFolder[] = "prepared";
inline constexpr char kReferencePath[] = "prepared/reference.safetensors";
inline constexpr char kWeightDatabaseFolder[] = "prepared/weights";
inline constexpr char kScoresPath[] = "report/scores.json";

// What the model is computed in: float32 on the CPU, where it costs little; on other devices the
// checkpoint's own 16-bit type, if it has one.
at::ScalarType ComputeDType(at::Device device, at::ScalarType stored);

// How a task over `checkpoint` uses the device, within limits.device_memory_bytes or what there is.
// `options` has the rest: longest_sequence and what is done. INVALID_ARGUMENT: as PlanMemory.
absl::StatusOr<MemoryPlan> PlanTask(const v1::Limits& limits, const Checkpoint& checkpoint,
                                    at::Device device, at::ScalarType compute,
                                    MemoryPlanOptions options);

// Memory that hidden states may take to save trials from computing shared blocks again: 1 GiB, and
// at most a sixteenth of what the machine has.
int64_t PrefixCacheBytes();

// The states over a share, in the type that models are evaluated in, with the head to apply to
// them.
ReferenceStates StatesIn(const ReferenceShare& share, const at::Tensor& head, at::ScalarType dtype);

// The checkpoint's weights, block by block as the plan has it: also where it has them stay, for
// walks that visit a block once or twice. One that visits it often begins with MakeResident.
std::unique_ptr<WeightSource> OpenStreamed(std::shared_ptr<const Checkpoint> checkpoint,
                                           at::Device device, at::ScalarType compute,
                                           const MemoryPlan& plan);

// A source that computes like `source`, with all weights loaded, if the plan has them stay; else
// null.
std::unique_ptr<WeightSource> MakeResident(WeightSource& source, const MemoryPlan& plan);

// The same for a model beside which `free_bytes` are left.
std::unique_ptr<WeightSource> MakeResidentIn(int64_t free_bytes, WeightSource& source);

struct PreparedModel {
  std::unique_ptr<WeightSource> source;
  MemoryPlan plan;
  Reference reference;
  // The linears as they were quantized in PREPARE; null where trials round to nearest.
  std::unique_ptr<WeightDatabase> weights;
  // What the job's trials on this engine have in common.
  std::unique_ptr<PrefixCache> prefixes;

  // The original's states over a share, with the head that was never pruned, in the type that
  // models are evaluated in.
  ReferenceStates States(const ReferenceShare& share, at::ScalarType dtype) const;
};

// Keeps the model of the last task. Not thread-safe.
class PreparedModelCache {
 public:
  explicit PreparedModelCache(at::Device device) : device_(device) {}

  // The model in `input_dir`, of a job's `spec` with its defaults filled in; read only if the
  // inputs are not those of the last call. FAILED_PRECONDITION: no prepared model is among the
  // inputs. RESOURCE_EXHAUSTED: not even the smallest batch fits into the device's memory.
  absl::StatusOr<const PreparedModel*> Get(
      const v1::CompressionSpec& spec,
      const google::protobuf::RepeatedPtrField<internal::v1::ArtifactRef>& inputs,
      const std::string& input_dir);
  void Clear();

 private:
  const at::Device device_;
  std::string key_;
  std::unique_ptr<PreparedModel> model_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_PREPARED_MODEL_H_
