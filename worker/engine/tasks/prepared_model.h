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

// Bytes that may stay in memory between uses: a quarter of what the machine has. On other devices
// 0: their memory is not the host's, and what does not fit there is streamed.
int64_t MemoryLimit(at::Device device);

// Memory that hidden states may take to save trials from computing shared blocks again: 1 GiB, and
// at most a sixteenth of what the machine has.
int64_t PrefixCacheBytes();

// A source that computes like `source`, with all weights in memory if they fit; else null.
std::unique_ptr<WeightSource> MakeResident(WeightSource& source);

struct PreparedModel {
  std::unique_ptr<WeightSource> source;
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
  // inputs.
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
