#include "worker/engine/tasks/finalize_task.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
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
#include "worker/engine/tasks/gguf_export.h"
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

// What is written, and what it is made of.
struct Outputs {
  QuantizedSource& base;
  WeightSource& exported;  // As model/ holds it: base, with the adapter if there is one, rounded.
  WeightSource& unquantized;  // As GGUF's types are made from: see Export.GGUF.
  const LoraAdapter* adapter;
};

ModelCard MakeModelCard(const v1::CompressionSpec& spec, const Outputs& outputs,
                        const ModelBytes& bytes, const FinalizeResult& result) {
  ModelCard card;
  card.base_model = spec.model().uri();
  card.pruning = DescribePruning(spec.pruning());
  card.quantization = DescribeQuantization(outputs.base.assignment(), bytes);
  card.evaluation = absl::StrCat("the test share of ", spec.evaluation().dataset().uri(), ", ",
                                 result.chosen_test().token_count(),
                                 " predicted tokens; the KL divergence is to the original model");
  card.rows.push_back(CardRow("quantized", result.chosen_test()));
  card.uniform = outputs.base.config().uniform();
  if (outputs.adapter != nullptr) {
    card.fine_tuning =
        absl::StrFormat("LoRA rank %d, %s start, %d steps", outputs.adapter->rank,
                        AdapterInitOf(spec.fine_tune()) == AdapterInit::kZero ? "zero" : "LoftQ",
                        TrainerOptionsOf(spec.fine_tune()).steps());
    card.rows.push_back(CardRow("fine-tuned, adapter merged", result.fine_tuned_test()));
  }
  card.notes.assign(result.notes().begin(), result.notes().end());
  return card;
}

// Writes quantized/, adapter/ if there is one, and the formats that were asked for.
absl::Status ExportModel(const v1::CompressionSpec& spec, const Outputs& outputs,
                         const ModelBytes& bytes, const Folders& folders,
                         const std::function<TokenMetrics(WeightSource&)>& measure,
                         FinalizeResult& result) {
  RETURN_IF_ERROR(
      WritePackedModel(absl::StrCat(folders.output, "/quantized"), outputs.base).status());
  if (outputs.adapter != nullptr) {
    RETURN_IF_ERROR(WritePeftAdapter(absl::StrCat(folders.output, "/adapter"),
                                     {.rank = outputs.adapter->rank,
                                      .alpha = outputs.adapter->alpha,
                                      .a = outputs.adapter->a,
                                      .b = outputs.adapter->b,
                                      .base_model = spec.model().uri()})
                        .status());
  }
  const ModelCard card = MakeModelCard(spec, outputs, bytes, result);
  if (WantsExport(spec.export_(), v1::Export::HUGGING_FACE)) {
    const std::string folder = absl::StrCat(folders.output, "/model");
    RETURN_IF_ERROR(
        WriteHfModel(folder, outputs.exported,
                     {.dtype = ExportDTypeOf(spec.export_()), .tokenizer_from = folders.prepared})
            .status());
    ModelCard hugging_face = card;
    if (outputs.adapter != nullptr) {
      hugging_face.notes.insert(hugging_face.notes.begin(),
                                "Sizes are those of the packed weights in quantized/; the weights "
                                "here are the same after "
                                "dequantization, with the adapter merged.");
    }
    RETURN_IF_ERROR(WriteModelCard(folder, hugging_face).status());
  }
  if (WantsExport(spec.export_(), v1::Export::GGUF)) {
    ASSIGN_OR_RETURN(
        const GgufExport gguf,
        ExportGguf(absl::StrCat(folders.output, "/gguf"), spec.export_(), outputs.base.assignment(),
                   outputs.unquantized, folders.prepared, card, measure));
    *result.mutable_gguf_test() = gguf.metrics;
    for (const std::string& note : gguf.notes) result.add_notes(note);
  }
  return absl::OkStatus();
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
  const auto measure_quietly = [&](WeightSource& source) {
    return EvaluateModel(source, model.reference.test.batches, &test_states);
  };
  ASSIGN_OR_RETURN(const auto base,
                   QuantizedSource::Create(*model.source, assignment,
                                           QuantizedSource::Keep::kPacked, model.weights.get()));
  const at::ScalarType export_dtype = ExportDTypeOf(spec.export_());

  if (!fine_tune) {
    RoundedSource exported(*base, export_dtype);
    *result.mutable_chosen_test() =
        measure(exported, Phase(progress, 0, 0.7, "measuring the chosen model"));
    const Phase writing(progress, 0.7, 1, "exporting");
    RETURN_IF_ERROR(ExportModel(spec, {*base, exported, *model.source, nullptr}, bytes, folders,
                                measure_quietly, result));
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
  RETURN_IF_ERROR(ExportModel(spec, {*base, exported, merged, &state.best}, bytes, folders,
                              measure_quietly, result));
  return result;
}

}  // namespace qpruner::engine
