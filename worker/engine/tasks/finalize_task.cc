#include "worker/engine/tasks/finalize_task.h"

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/tasks/exports.h"
#include "worker/engine/tasks/job_tasks.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/recovery.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/tasks/task_use.h"

namespace qpruner::engine {

using internal::v1::FinalizeResult;
using internal::v1::FinalizeTask;

namespace {

// Adapters are stored in float32.
constexpr int64_t kAdapterElementBytes = 4;

// More than one iteration of LoftQ stores another base than the one that the trial has measured.
bool StoresAnotherBase(const v1::FineTune& fine_tune) {
  return AdapterInitOf(fine_tune) == AdapterInit::kLoftq && LoftqIterationsOf(fine_tune) > 1;
}

void AddCurve(const std::vector<CurvePoint>& curve, FinalizeResult& result) {
  for (const CurvePoint& point : curve) {
    auto& out = *result.add_curve();
    out.set_step(static_cast<int32_t>(point.step));
    out.set_train_loss(point.train_loss.value_or(0));
    out.set_selection_loss(point.held_out_loss);
  }
}

}  // namespace

absl::StatusOr<FinalizeResult> RunFinalize(const v1::CompressionSpec& spec,
                                           const FinalizeTask& task, const PreparedModel& model,
                                           const std::string& input_dir,
                                           const std::string& builtin_dir,
                                           const std::string& output_dir, Clock& clock,
                                           ProgressReporter& progress) {
  FinalizeResult result;
  const ModelConfig& config = model.source->config();
  ASSIGN_OR_RETURN(const FormatAssignment assignment,
                   AssignmentOf(spec, task.precisions(), config));
  const ModelBytes bytes = CountBytes(config, assignment);
  const TrainerOptions trainer = TrainerOptionsOf(spec.fine_tune());
  const bool fine_tune = trainer.steps() > 0;
  if (fine_tune) RETURN_IF_ERROR(CheckTrainer(trainer));

  const std::string prepared = absl::StrCat(input_dir, "/", kPreparedFolder);
  ASSIGN_OR_RETURN(const std::vector<ChoiceTask> tasks,
                   ReadKeptTasks(spec.evaluation(), prepared, config));
  const at::ScalarType dtype = EvaluationDTypeOf(spec.evaluation(), model.source->dtype());
  const ReferenceStates test_states = model.States(model.reference.test, dtype);
  // Text in the first half of the time from `from` to `to`, tasks in the second.
  const auto measure = [&](WeightSource& weights, const std::string& label, double from, double to,
                           v1::ModelMetrics& metrics) {
    CastSource source(weights, dtype);
    const double middle = tasks.empty() ? to : (from + to) / 2;
    {
      const Phase phase(progress, from, middle, absl::StrCat("measuring the ", label, " model"));
      metrics =
          PackedMetrics(bytes, Timed(clock, model.reference.test.batches, [&] {
                          return EvaluateModel(source, model.reference.test.batches, &test_states,
                                               phase.Blocks(config.num_blocks()));
                        }));
    }
    if (tasks.empty()) return absl::OkStatus();
    return ScoreJobTasks(
        source, tasks, model.plan.batch_tokens, label, output_dir,
        Phase(progress, middle, to, absl::StrCat("scoring the ", label, " model on the tasks")),
        metrics);
  };
  const auto measure_quietly = [&](WeightSource& weights) {
    CastSource source(weights, dtype);
    return Timed(clock, model.reference.test.batches,
                 [&] { return EvaluateModel(source, model.reference.test.batches, &test_states); });
  };
  ASSIGN_OR_RETURN(const auto base,
                   QuantizedSource::Create(*model.source, assignment,
                                           QuantizedSource::Keep::kPacked, model.weights.get()));
  const auto write = [&](const LoraAdapter* adapter, ExportedWeights& weights) {
    return WriteExports({.spec = spec,
                         .bytes = bytes,
                         .adapter = adapter,
                         .unquantized = *model.source,
                         .measure = measure_quietly,
                         .tokenizer_from = prepared,
                         .output_folder = output_dir},
                        *base, weights, result);
  };

  if (!fine_tune) {
    ExportedWeights weights(spec.export_(), *base, nullptr);
    RETURN_IF_ERROR(measure(weights.measured(), "chosen", 0, 0.7, *result.mutable_chosen_test()));
    const Phase writing(progress, 0.7, 1, "exporting");
    RETURN_IF_ERROR(write(nullptr, weights));
    return result;
  }

  RETURN_IF_ERROR(measure(*base, "chosen", 0, 0.1, *result.mutable_chosen_test()));
  ASSIGN_OR_RETURN(
      const TrainingState state,
      RecoverModel({spec, model, builtin_dir, input_dir, output_dir}, *base, trainer, progress));
  AddCurve(state.curve, result);
  if (state.best_step == 0) {
    result.add_notes(
        "Fine-tuning did not lower the loss on the selection share: the adapter is "
        "the one it started with");
  }
  result.set_adapter_bytes(state.best.parameter_count() * kAdapterElementBytes);
  if (StoresAnotherBase(spec.fine_tune())) {
    const Phase phase(progress, 0.85, 0.88, "measuring the stored base without its adapter");
    *result.mutable_base_test() = PackedMetrics(bytes, measure_quietly(*base));
  }

  ExportedWeights weights(spec.export_(), *base, &state.best);
  RETURN_IF_ERROR(
      measure(weights.measured(), "fine-tuned", 0.88, 0.95, *result.mutable_fine_tuned_test()));
  const Phase writing(progress, 0.95, 1, "exporting");
  RETURN_IF_ERROR(write(&state.best, weights));
  return result;
}

}  // namespace qpruner::engine
