// FINALIZE's fine-tuning: from the quantized base to the adapter that is exported with it.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_RECOVERY_H_
#define QPRUNER_WORKER_ENGINE_TASKS_RECOVERY_H_

#include <string>

#include "absl/status/statusor.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

struct RecoveryInputs {
  const v1::CompressionSpec& spec;
  const PreparedModel& model;
  // What builtin:// means: distillation reads the original model again.
  std::string builtin_dir;
  // Where a checkpoint of an earlier attempt may be, and where this one's are written.
  std::string input_dir;
  std::string output_dir;
};

// What fine-tuning `model`, pruned from `original`, will keep on `device`, whose models are
// computed in `usual`, within `limit_bytes`. Sets what `trainer`, from the spec, needs to know to
// plan the same. INVALID_ARGUMENT: not even one block with one sequence fits; names the field.
absl::StatusOr<TrainingPlan> PlanRecovery(const v1::FineTune& fine_tune, const ModelConfig& model,
                                          const ModelConfig& original, at::ScalarType usual,
                                          at::Device device, int64_t limit_bytes,
                                          const HeldOutShape& held_out, TrainerOptions& trainer);

// Starts the adapter (which may change what `base` stores, see StartAdapter), trains it, and
// returns the state at the end; its `best` is the result. `trainer` is what the spec says. Goes on
// from the checkpoint of an earlier attempt, if there is one, to the same result. Reports fractions
// 0.1 to 0.85 of the task. INVALID_ARGUMENT, NOT_FOUND: the settings, the text, or the original
// model. RESOURCE_EXHAUSTED: not even one block with one sequence fits into the device's memory.
absl::StatusOr<TrainingState> RecoverModel(const RecoveryInputs& inputs, QuantizedSource& base,
                                           TrainerOptions trainer, ProgressReporter& progress);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_RECOVERY_H_
