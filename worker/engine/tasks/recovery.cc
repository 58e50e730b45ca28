#include "worker/engine/tasks/recovery.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/distillation.h"
#include "worker/engine/finetune/training_checkpoint.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"
#include "worker/engine/tasks/original_model.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/tasks/torch_guard.h"

namespace qpruner::engine {

namespace fs = std::filesystem;

namespace {

// What the trainer sees of the fine-tuning share.
std::vector<TrainingSequence> SequencesOf(const v1::FineTune& fine_tune,
                                          const std::vector<TrainingSequence>& share,
                                          const TrainerOptions& trainer) {
  if (fine_tune.packing()) return PackDocuments(share, trainer.sequence_length, trainer.seed);
  return share;  // PREPARE has cut them.
}

// The original model, and the loss that learns from it.
struct Teacher {
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<TrainingObjective> objective;
};

Teacher MakeTeacher(std::unique_ptr<WeightSource> original, const QuantizedSource& student,
                    const TrainingPlan& plan, const DistillationOptions& options) {
  Teacher teacher{.source = std::move(original)};
  if (auto resident =
          MakeResidentIn(plan.memory_limit_bytes - plan.expected_bytes, *teacher.source)) {
    teacher.source = std::move(resident);
  }
  teacher.objective = std::make_unique<DistillationObjective>(*teacher.source,
                                                              student.config().vocab_size, options);
  return teacher;
}

// Writes checkpoints and tells of them.
class CheckpointWriter {
 public:
  CheckpointWriter(std::string output_dir, int64_t every, ProgressReporter& progress)
      : output_dir_(std::move(output_dir)), every_(every), progress_(progress) {}

  // Every so many steps, but not after the last: nothing is left to repeat from there. A file that
  // cannot be written costs an interrupted run time, not its result.
  void MaybeWrite(const TrainingProgress& at, const TrainingState& state) {
    if (every_ == 0 || at.step == 0 || at.step == at.steps || at.step % every_ != 0) return;
    std::error_code error;
    fs::create_directories(absl::StrCat(output_dir_, "/", kCheckpointFolder), error);
    const std::string path = PathOf(at.step);
    const absl::Status written =
        WriteTrainingCheckpoint(absl::StrCat(output_dir_, "/", path), state);
    if (!written.ok()) {
      progress_.Log(absl::StrCat("No checkpoint at step ", at.step, ": ",
                                 absl::string_view(written.message())),
                    /*warning=*/true);
      return;
    }
    progress_.Checkpoint({path});
    fs::remove(absl::StrCat(output_dir_, "/", PathOf(at.step - 2 * every_)), error);
  }

 private:
  static std::string PathOf(int64_t step) {
    return absl::StrCat(kCheckpointFolder, "/training-", step, ".safetensors");
  }

  const std::string output_dir_;
  const int64_t every_;
  ProgressReporter& progress_;
};

// The state that an earlier attempt has left, or `start`. A file that cannot be used is passed
// over, with a warning: training from the beginning gives the same result.
TrainingState Resume(const std::string& input_dir, TrainingState start,
                     ProgressReporter& progress) {
  std::error_code error;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(absl::StrCat(input_dir, "/", kCheckpointFolder), error)) {
    absl::StatusOr<TrainingState> state = ReadTrainingCheckpoint(entry.path().string(), start);
    if (state.ok()) {
      progress.Log(absl::StrCat("Fine-tuning goes on after step ", state->step,
                                ", where an earlier attempt had saved it"));
      return *std::move(state);
    }
    progress.Log(absl::StrCat("Fine-tuning starts from the beginning: ",
                              absl::string_view(state.status().message())),
                 /*warning=*/true);
  }
  return start;
}

}  // namespace

absl::StatusOr<TrainingPlan> PlanRecovery(const v1::FineTune& fine_tune, const ModelConfig& model,
                                          const ModelConfig& original, at::ScalarType usual,
                                          at::Device device, int64_t limit_bytes,
                                          const HeldOutShape& held_out, TrainerOptions& trainer) {
  trainer.dtype = TrainingDTypeOf(fine_tune, usual);
  trainer.memory_limit_bytes = limit_bytes;
  if (DistillationOptionsOf(fine_tune)) {
    trainer.objective =
        DistillationCosts(original, usual, device, trainer.batch_size * trainer.sequence_length);
  }
  // The packed weights wait in a HostStore.
  if (device.is_cpu()) {
    trainer.base_bytes = std::min(HostStore::kDefaultResidentBytes, ParameterCount(model));
  }
  return PlanOf(model, LoraOptionsOf(fine_tune).rank, device, trainer, held_out);
}

absl::StatusOr<TrainingState> RecoverModel(const RecoveryInputs& inputs, QuantizedSource& base,
                                           TrainerOptions trainer, ProgressReporter& progress) {
  const v1::FineTune& fine_tune = inputs.spec.fine_tune();
  const auto distillation = DistillationOptionsOf(fine_tune);
  OriginalModel original;
  if (distillation) {
    ASSIGN_OR_RETURN(original, OpenOriginalModel(inputs.spec.model().uri(), inputs.builtin_dir,
                                                 inputs.input_dir, base.device()));
  }
  const auto plan = PlanRecovery(fine_tune, base.config(),
                                 distillation ? original.checkpoint->config() : base.config(),
                                 base.dtype(), base.device(), inputs.model.plan.limit_bytes,
                                 ShapeOf(inputs.model.reference.selection.batches), trainer);
  // PREPARE has planned for more: this device has less, or others use it.
  if (!plan.ok()) return OutOfMemoryError(plan.status().message());
  AdapterStart start;
  {
    const Phase phase(progress, 0.1, 0.15, "starting the adapter");
    // More than one iteration of LoftQ stores another base than rounding alone.
    start = StartAdapter(*inputs.model.source, base, AdapterInitOf(fine_tune),
                         LoftqIterationsOf(fine_tune), LoraOptionsOf(fine_tune), phase.Fractions());
  }
  progress.Log(absl::StrFormat(
      "Adapter starts with %.1f %% of the quantization error (Frobenius norm over all linears)",
      start.error_quantized > 0 ? 100 * start.error / start.error_quantized : 100.0));
  progress.Log(absl::StrCat("Fine-tuning is ", plan->Describe()));
  if (plan->micro_batch_size < std::min(trainer.micro_batch_size, trainer.batch_size)) {
    progress.Log(absl::StrCat("Memory is short: fine_tune.micro_batch_size is lowered to ",
                              plan->micro_batch_size),
                 /*warning=*/true);
  }
  Teacher teacher;
  if (distillation) {
    teacher = MakeTeacher(std::move(original.source), base, *plan, *distillation);
  }

  TrainingState state = Resume(inputs.input_dir, StartTraining(std::move(start.adapter)), progress);
  CheckpointWriter checkpoints(inputs.output_dir, fine_tune.checkpoint_every(), progress);
  const Phase phase(progress, 0.15, 0.85, "fine-tuning");
  const TrainingObserver observer = [&](const TrainingProgress& at, const TrainingState& now) {
    phase.Done(static_cast<double>(at.step) / static_cast<double>(at.steps));
    if (at.held_out_loss) {
      progress.Log(absl::StrFormat("Fine-tuning step %d of %d: selection loss %.4f nats a token",
                                   at.step, at.steps, *at.held_out_loss));
    }
    checkpoints.MaybeWrite(at, now);
    return true;
  };
  RETURN_IF_ERROR(Train(base, SequencesOf(fine_tune, inputs.model.reference.fine_tune, trainer),
                        inputs.model.reference.selection.batches, trainer, state, observer,
                        teacher.objective.get()));
  return state;
}

}  // namespace qpruner::engine
