#include "worker/engine/tasks/exports.h"

#include <ATen/ATen.h>

#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "worker/engine/export/bitsandbytes_model.h"
#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/export/model_card.h"
#include "worker/engine/export/packed_model.h"
#include "worker/engine/export/peft_adapter.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/quantize/dequantized_source.h"
#include "worker/engine/tasks/gguf_export.h"
#include "worker/engine/tasks/spec_mapping.h"

namespace qpruner::engine {
namespace {

constexpr char kModelFolder[] = "model";
constexpr char kPackedFolder[] = "quantized";
constexpr char kCompressedTensorsFolder[] = "compressed-tensors";
constexpr char kBitsandbytesFolder[] = "bitsandbytes";
constexpr char kGgufFolder[] = "gguf";
constexpr char kAdapterFolder[] = "adapter";

// Rows of a model card: what a trial measures, and what is stored where that is another base.
constexpr char kQuantizedRow[] = "quantized";
constexpr char kBaseRow[] = "stored base, without the adapter";

bool Merged(const v1::Export& options) { return options.adapter() != v1::Export::BESIDE; }

// The folder of the weights that the adapter belongs on, which every job leaves one way or another.
std::string AdapterBase(const v1::Export& options) {
  if (WantsExport(options, v1::Export::HUGGING_FACE) && !Merged(options)) return kModelFolder;
  if (WantsExport(options, v1::Export::COMPRESSED_TENSORS)) return kCompressedTensorsFolder;
  if (WantsExport(options, v1::Export::BITSANDBYTES)) return kBitsandbytesFolder;
  return kPackedFolder;
}

std::string DescribePruning(const v1::Pruning& pruning) {
  if (pruning.has_parameter_ratio()) {
    return absl::StrFormat("%s, %g %% of the parameters, widths searched, layout %s",
                           v1::Pruning::Importance_Name(pruning.importance()),
                           100 * pruning.parameter_ratio(),
                           v1::Pruning::Layout_Name(pruning.layout()));
  }
  if (pruning.ratio() == 0) return "none";
  return absl::StrFormat("%s, %g %% of the key/value groups and MLP channels, layout %s",
                         v1::Pruning::Importance_Name(pruning.importance()), 100 * pruning.ratio(),
                         v1::Pruning::Layout_Name(pruning.layout()));
}

std::string DescribeQuantization(const v1::Quantization& quantization,
                                 const FormatAssignment& assignment, const ModelBytes& bytes) {
  std::map<std::string, int> counts;
  for (const auto& [linear, format] : assignment) ++counts[FormatName(format)];
  std::vector<std::string> parts;
  for (const auto& [name, count] : counts) parts.push_back(absl::StrCat(name, " ", count));
  return absl::StrFormat(
      "%s of %d linears; %.3f stored bits a weight on average; %s%s", absl::StrJoin(parts, ", "),
      assignment.size(), bytes.average_bits(),
      quantization.method() == v1::Quantization::GPTQ ? "GPTQ" : "round-to-nearest",
      quantization.activation_scaling() ? " after activation-aware scaling" : "");
}

ModelCardRow CardRow(const std::string& label, const v1::ModelMetrics& metrics) {
  return {.label = label,
          .weight_bytes = metrics.weight_bytes(),
          .average_bits = metrics.average_bits(),
          .perplexity = metrics.perplexity(),
          .kl_divergence = metrics.kl_divergence()};
}

ModelCard MakeCard(const ExportContext& context, const QuantizedSource& base,
                   const internal::v1::FinalizeResult& result) {
  const v1::CompressionSpec& spec = context.spec;
  ModelCard card;
  card.base_model = spec.model().uri();
  card.pruning = DescribePruning(spec.pruning());
  card.quantization = DescribeQuantization(spec.quantization(), base.assignment(), context.bytes);
  const v1::Evaluation& evaluation = spec.evaluation();
  card.evaluation = absl::StrCat(
      "the test share of ", evaluation.dataset().uri(), ", ", result.chosen_test().token_count(),
      " predicted tokens in windows of ", evaluation.sequence_length(),
      evaluation.stride() < evaluation.sequence_length()
          ? absl::StrCat(" that begin every ", evaluation.stride(), ", each token predicted once")
          : "",
      "; the KL divergence is to the original model");
  card.rows.push_back(CardRow(kQuantizedRow, result.chosen_test()));
  if (context.adapter != nullptr) {
    if (result.has_base_test()) card.rows.push_back(CardRow(kBaseRow, result.base_test()));
    card.fine_tuning =
        absl::StrFormat("LoRA rank %d, %s start, %d steps", context.adapter->rank,
                        AdapterInitOf(spec.fine_tune()) == AdapterInit::kZero ? "zero" : "LoftQ",
                        TrainerOptionsOf(spec.fine_tune()).steps());
    card.rows.push_back(CardRow("fine-tuned", result.fine_tuned_test()));
  }
  card.notes.insert(card.notes.end(), result.notes().begin(), result.notes().end());
  return card;
}

std::string UseOfModelFolder(const ExportContext& context, bool uniform) {
  if (!uniform) {
    return "The blocks of this model differ in shape (`qpruner_block_shapes` in config.json), "
           "which "
           "`transformers` cannot load. QPruner reads it.";
  }
  std::string use =
      "A plain model: `AutoModelForCausalLM.from_pretrained(folder)`. Its weights are those of "
      "`quantized/`, dequantized";
  if (context.adapter == nullptr) return use + ".";
  return use + (Merged(context.spec.export_())
                    ? ", with the adapter merged. The scores of the last row are of these weights."
                    : "; the adapter beside it, in `adapter/`, belongs on them: the scores of the "
                      "last row are of both together.");
}

std::string UseOfPackedFolder(const ExportContext& context, const char* library,
                              const internal::v1::FinalizeResult& result) {
  std::string use = absl::StrCat(
      "Packed weights for engines that read `", library,
      "`: `AutoModelForCausalLM.from_pretrained(folder)` with that library installed.");
  if (context.adapter != nullptr) {
    absl::StrAppend(&use,
                    " The adapter in `adapter/` belongs on them; without it the scores are those "
                    "of the row \"",
                    result.has_base_test() ? kBaseRow : kQuantizedRow, "\".");
  }
  return use;
}

absl::Status WriteAdapter(const ExportContext& context) {
  const std::string folder = absl::StrCat(context.output_folder, "/", kAdapterFolder);
  const std::string base = AdapterBase(context.spec.export_());
  RETURN_IF_ERROR(WritePeftAdapter(folder, {.rank = context.adapter->rank,
                                            .alpha = context.adapter->alpha,
                                            .a = context.adapter->a,
                                            .b = context.adapter->b,
                                            .base_model = base})
                      .status());
  std::string text = absl::StrCat("# LoRA adapter\n\nBelongs on the quantized, pruned weights in `",
                                  base, "/` beside this folder, not on the original model");
  if (Merged(context.spec.export_()) &&
      WantsExport(context.spec.export_(), v1::Export::HUGGING_FACE)) {
    absl::StrAppend(&text, " and not on `model/`, which has it merged already");
  }
  absl::StrAppend(&text, ".\n\n");
  if (base == kPackedFolder) {
    absl::StrAppend(&text,
                    "`quantized/` is in QPruner's own layout. For a base that "
                    "`transformers` loads, ask for export.adapter BESIDE or one of the packed "
                    "export.formats.\n");
  } else {
    absl::StrAppend(&text, "In the folder that holds both:\n\n",
                    "    AutoPeftModelForCausalLM.from_pretrained(\"", kAdapterFolder, "\")\n\n",
                    "or, from anywhere,\n\n",
                    "    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\".../",
                    base, "\"), \".../", kAdapterFolder, "\")\n");
  }
  return WriteFileDurably(absl::StrCat(folder, "/README.md"), text);
}

}  // namespace

absl::Status CheckExports(const v1::CompressionSpec& spec, const ModelConfig& config,
                          const std::vector<Format>& formats) {
  if (WantsExport(spec.export_(), v1::Export::COMPRESSED_TENSORS)) {
    RETURN_IF_ERROR(CheckCompressedTensors(config, formats));
  }
  if (WantsExport(spec.export_(), v1::Export::BITSANDBYTES)) {
    RETURN_IF_ERROR(CheckBitsandbytes(config, formats));
  }
  return absl::OkStatus();
}

ExportedWeights::ExportedWeights(const v1::Export& options, QuantizedSource& base,
                                 const LoraAdapter* adapter)
    : dequantized_(&base) {
  const auto add = [this](auto layer) -> WeightSource* {
    return layers_.emplace_back(std::move(layer)).get();
  };
  if (base.dtype() != at::kFloat) dequantized_ = add(std::make_unique<DequantizedSource>(base));
  const bool merge = adapter != nullptr && Merged(options);
  in_folder_ = merge ? add(std::make_unique<MergedSource>(*dequantized_, *adapter)) : dequantized_;
  measured_ = in_folder_;
  if (WantsExport(options, v1::Export::HUGGING_FACE)) {
    measured_ = add(std::make_unique<CastSource>(*in_folder_, ExportDTypeOf(options)));
  }
  // As it is written, then as it is computed with.
  measured_ = add(std::make_unique<CastSource>(*measured_, base.dtype()));
  if (adapter != nullptr && !merge) {
    measured_ = add(std::make_unique<MergedSource>(*measured_, *adapter));
  }
}

absl::Status WriteExports(const ExportContext& context, QuantizedSource& base,
                          ExportedWeights& weights, internal::v1::FinalizeResult& result) {
  const v1::Export& options = context.spec.export_();
  ModelCard card = MakeCard(context, base, result);
  const auto folder = [&](const char* name) {
    return absl::StrCat(context.output_folder, "/", name);
  };
  RETURN_IF_ERROR(WritePackedModel(folder(kPackedFolder), base).status());
  if (WantsExport(options, v1::Export::HUGGING_FACE)) {
    RETURN_IF_ERROR(
        WriteHfModel(folder(kModelFolder), weights.in_model_folder(),
                     {.dtype = ExportDTypeOf(options), .tokenizer_from = context.tokenizer_from})
            .status());
    card.use = UseOfModelFolder(context, base.config().uniform());
    RETURN_IF_ERROR(WriteModelCard(folder(kModelFolder), card).status());
  }
  if (WantsExport(options, v1::Export::COMPRESSED_TENSORS)) {
    RETURN_IF_ERROR(
        WriteCompressedTensors(folder(kCompressedTensorsFolder), base, context.tokenizer_from)
            .status());
    card.use = UseOfPackedFolder(context, "compressed-tensors", result);
    RETURN_IF_ERROR(WriteModelCard(folder(kCompressedTensorsFolder), card).status());
  }
  if (WantsExport(options, v1::Export::BITSANDBYTES)) {
    RETURN_IF_ERROR(
        WriteBitsandbytes(folder(kBitsandbytesFolder), base, context.tokenizer_from).status());
    card.use = UseOfPackedFolder(context, "bitsandbytes", result);
    RETURN_IF_ERROR(WriteModelCard(folder(kBitsandbytesFolder), card).status());
  }
  if (WantsExport(options, v1::Export::GGUF)) {
    std::optional<MergedSource> merged;
    if (context.adapter != nullptr) merged.emplace(weights.dequantized(), *context.adapter);
    ASSIGN_OR_RETURN(const GgufExport gguf,
                     ExportGguf(folder(kGgufFolder), options, base.assignment(),
                                merged ? static_cast<WeightSource&>(*merged) : context.unquantized,
                                context.tokenizer_from, card, context.measure));
    *result.mutable_gguf_test() = gguf.metrics;
    for (const std::string& note : gguf.notes) result.add_notes(note);
  }
  if (context.adapter != nullptr) RETURN_IF_ERROR(WriteAdapter(context));
  return absl::OkStatus();
}

}  // namespace qpruner::engine
