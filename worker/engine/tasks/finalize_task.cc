#include "worker/engine/tasks/finalize_task.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/export/model_card.h"
#include "worker/engine/export/packed_model.h"
#include "worker/engine/export/peft_adapter.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/recovery.h"
#include "worker/engine/tasks/rounded_source.h"
#include "worker/engine/tasks/spec_mapping.h"

namespace qpruner::engine {

using internal::v1::FinalizeResult;
using internal::v1::FinalizeTask;

namespace {

// Adapters are stored in float32.
constexpr int64_t kAdapterElementBytes = 4;

void AddCurve(const std::vector<CurvePoint>& curve, FinalizeResult& result) {
  for (const CurvePoint& point : curve) {
    auto& out = *result.add_curve();
    out.set_step(static_cast<int32_t>(point.step));
    out.set_train_loss(point.train_loss.value_or(0));
    out.set_selection_loss(point.held_out_loss);
  }
}

struct Folders {
  std::string prepared;
  std::string output;
};

std::string DescribePruning(const v1::Pruning& pruning) {
  if (pruning.ratio() == 0) return "none";
  return absl::StrFormat("%s, %g %% of the key/value groups and MLP channels, layout %s",
                         v1::Pruning::Importance_Name(pruning.importance()), 100 * pruning.ratio(),
                         v1::Pruning::Layout_Name(pruning.layout()));
}

std::string DescribeQuantization(const FormatAssignment& assignment, const ModelBytes& bytes) {
  std::map<std::string, int> counts;
  for (const auto& [linear, format] : assignment) ++counts[FormatName(format)];
  std::vector<std::string> parts;
  for (const auto& [name, count] : counts) parts.push_back(absl::StrCat(name, " ", count));
  return absl::StrFormat("%s of %d linears; %.3f stored bits a weight on average",
                         absl::StrJoin(parts, ", "), assignment.size(), bytes.average_bits());
}

ModelCardRow CardRow(const std::string& label, const v1::ModelMetrics& metrics) {
  return {.label = label,
          .weight_bytes = metrics.weight_bytes(),
          .average_bits = metrics.average_bits(),
          .perplexity = metrics.perplexity(),
          .kl_divergence = metrics.kl_divergence()};
}

// Writes model/, quantized/ and, if there is one, adapter/.
absl::Status ExportModel(const v1::CompressionSpec& spec, QuantizedSource& base,
                         WeightSource& exported, const ModelBytes& bytes,
                         const FinalizeResult& result, const LoraAdapter* adapter,
                         const Folders& folders) {
  const std::string model_folder = absl::StrCat(folders.output, "/model");
  RETURN_IF_ERROR(
      WriteHfModel(model_folder, exported,
                   {.dtype = ExportDTypeOf(spec.export_()), .tokenizer_from = folders.prepared})
          .status());
  RETURN_IF_ERROR(WritePackedModel(absl::StrCat(folders.output, "/quantized"), base).status());
  ModelCard card;
  card.base_model = spec.model().uri();
  card.pruning = DescribePruning(spec.pruning());
  card.quantization = DescribeQuantization(base.assignment(), bytes);
  card.evaluation = absl::StrCat("the test share of ", spec.evaluation().dataset().uri(), ", ",
                                 result.chosen_test().token_count(),
                                 " predicted tokens; the KL divergence is to the original model");
  card.rows.push_back(CardRow("quantized", result.chosen_test()));
  card.uniform = base.config().uniform();
  if (adapter != nullptr) {
    card.fine_tuning =
        absl::StrFormat("LoRA rank %d, %s start, %d steps", adapter->rank,
                        AdapterInitOf(spec.fine_tune()) == AdapterInit::kZero ? "zero" : "LoftQ",
                        TrainerOptionsOf(spec.fine_tune()).steps());
    card.rows.push_back(CardRow("fine-tuned, as in this folder", result.fine_tuned_test()));
    card.notes.push_back(
        "Sizes are those of the packed weights in quantized/; the weights here are the same after "
        "dequantization, with the adapter merged.");
    RETURN_IF_ERROR(WritePeftAdapter(absl::StrCat(folders.output, "/adapter"),
                                     {.rank = adapter->rank,
                                      .alpha = adapter->alpha,
                                      .a = adapter->a,
                                      .b = adapter->b,
                                      .base_model = spec.model().uri()})
                        .status());
  }
  card.notes.insert(card.notes.end(), result.notes().begin(), result.notes().end());
  return WriteModelCard(model_folder, card).status();
}

}  // namespace

absl::StatusOr<FinalizeResult> RunFinalize(const v1::CompressionSpec& spec,
                                           const FinalizeTask& task, const PreparedModel& model,
                                           const std::string& input_dir,
                                           const std::string& builtin_dir,
                                           const std::string& output_dir,
                                           ProgressReporter& progress) {
  FinalizeResult result;
  const Folders folders{.prepared = absl::StrCat(input_dir, "/", kPreparedFolder),
                        .output = output_dir};
  const ModelConfig& config = model.source->config();
  ASSIGN_OR_RETURN(const FormatAssignment assignment,
                   AssignmentOf(spec, task.precisions(), config));
  const ModelBytes bytes = CountBytes(config, assignment);
  TrainerOptions trainer = TrainerOptionsOf(spec.fine_tune());
  const bool fine_tune = trainer.steps() > 0;
  if (trainer.sequence_length > config.max_position_embeddings) {
    result.add_notes(absl::StrCat("fine_tune.sequence_length was lowered from ",
                                  trainer.sequence_length, " to ", config.max_position_embeddings,
                                  ", the model's positions"));
    trainer.sequence_length = config.max_position_embeddings;
  }
  if (fine_tune) RETURN_IF_ERROR(CheckTrainer(trainer));

  const ReferenceStates test_states = model.States(model.reference.test);
  const auto measure = [&](WeightSource& source, const Phase& phase) {
    return PackedMetrics(bytes, EvaluateModel(source, model.reference.test.batches, &test_states,
                                              phase.Blocks(config.num_blocks())));
  };
  ASSIGN_OR_RETURN(const auto base, QuantizedSource::Create(*model.source, assignment));
  const at::ScalarType export_dtype = ExportDTypeOf(spec.export_());

  if (!fine_tune) {
    RoundedSource exported(*base, export_dtype);
    *result.mutable_chosen_test() =
        measure(exported, Phase(progress, 0, 0.7, "measuring the chosen model"));
    const Phase writing(progress, 0.7, 1, "exporting");
    RETURN_IF_ERROR(ExportModel(spec, *base, exported, bytes, result, nullptr, folders));
    return result;
  }

  *result.mutable_chosen_test() =
      measure(*base, Phase(progress, 0, 0.1, "measuring the chosen model"));
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

  MergedSource merged(*base, state.best);
  RoundedSource exported(merged, export_dtype);
  *result.mutable_fine_tuned_test() =
      measure(exported, Phase(progress, 0.85, 0.95, "measuring the fine-tuned model"));
  const Phase writing(progress, 0.95, 1, "exporting");
  RETURN_IF_ERROR(ExportModel(spec, *base, exported, bytes, result, &state.best, folders));
  return result;
}

}  // namespace qpruner::engine
