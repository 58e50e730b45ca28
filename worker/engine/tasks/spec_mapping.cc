#include "worker/engine/tasks/spec_mapping.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::engine {

std::vector<std::string> LowerToPositions(int64_t positions, v1::CompressionSpec& spec) {
  std::vector<std::string> notes;
  const auto lower = [&](absl::string_view field, auto& part, bool used) {
    if (part.sequence_length() <= positions) return;
    if (used) {
      notes.push_back(absl::StrCat(field, ".sequence_length was lowered from ",
                                   part.sequence_length(), " to ", positions,
                                   ", the model's positions"));
    }
    part.set_sequence_length(static_cast<int32_t>(positions));
  };
  // A stride that is the window's stays so; one that rolls still does.
  v1::Evaluation& evaluation = *spec.mutable_evaluation();
  if (evaluation.stride() == evaluation.sequence_length()) {
    evaluation.set_stride(static_cast<int32_t>(std::min<int64_t>(evaluation.stride(), positions)));
  } else if (evaluation.stride() >= positions) {
    const int64_t half = std::max<int64_t>(1, positions / 2);
    notes.push_back(absl::StrCat("evaluation.stride was lowered from ", evaluation.stride(), " to ",
                                 half, ", half of the model's positions"));
    evaluation.set_stride(static_cast<int32_t>(half));
  }
  lower("calibration", *spec.mutable_calibration(), true);
  lower("evaluation", *spec.mutable_evaluation(), true);
  lower("fine_tune", *spec.mutable_fine_tune(), spec.fine_tune().steps() > 0);
  return notes;
}

TextLimits TextLimitsOf(const v1::CompressionSpec& spec) {
  return {.calibration_samples = spec.calibration().sample_count(),
          .calibration_length = spec.calibration().sequence_length(),
          .calibration_seed = spec.calibration().seed(),
          .evaluation_length = spec.evaluation().sequence_length(),
          .evaluation_stride = spec.evaluation().stride(),
          .selection_tokens = spec.evaluation().max_selection_tokens(),
          .test_tokens = spec.evaluation().max_test_tokens()};
}

ImportanceOptions ImportanceOptionsOf(const v1::CompressionSpec& spec) {
  ImportanceOptions options;
  switch (spec.pruning().importance()) {
    case v1::Pruning::L1:
      options.method = ImportanceMethod::kL1;
      break;
    case v1::Pruning::L2:
      options.method = ImportanceMethod::kL2;
      break;
    case v1::Pruning::TAYLOR_FIRST:
      options.method = ImportanceMethod::kTaylorFirst;
      break;
    case v1::Pruning::TAYLOR_SECOND:
      options.method = ImportanceMethod::kTaylorSecond;
      break;
    case v1::Pruning::TAYLOR_VECTOR:
      options.method = ImportanceMethod::kTaylorVector;
      break;
    case v1::Pruning::RANDOM:
      options.method = ImportanceMethod::kRandom;
      break;
    default:
      options.method = ImportanceMethod::kTaylorMixed;
  }
  switch (spec.pruning().reduction()) {
    case v1::Pruning::MEAN:
      options.reduction = GroupReduction::kMean;
      break;
    case v1::Pruning::MAX:
      options.reduction = GroupReduction::kMax;
      break;
    case v1::Pruning::PRODUCT:
      options.reduction = GroupReduction::kProduct;
      break;
    case v1::Pruning::FIRST:
      options.reduction = GroupReduction::kFirst;
      break;
    default:
      options.reduction = GroupReduction::kSum;
  }
  options.fold = spec.pruning().llm_pruner_head_fold() ? HeadFold::kLlmPruner : HeadFold::kReaders;
  options.seed = static_cast<uint64_t>(spec.calibration().seed());
  return options;
}

PruningOptions PruningOptionsOf(const v1::Pruning& pruning) {
  PruningOptions options;
  options.ratio = pruning.ratio();
  options.layout = pruning.layout() == v1::Pruning::PER_LAYER ? PruningLayout::kPerLayer
                                                              : PruningLayout::kUniform;
  options.alignment = pruning.alignment();
  options.steps = pruning.steps();
  switch (pruning.selection()) {
    case v1::Pruning::GLOBAL:
      options.selection = PruningSelection::kGlobal;
      break;
    case v1::Pruning::GLOBAL_PER_KIND:
      options.selection = PruningSelection::kGlobalPerKind;
      break;
    default:
      options.selection = PruningSelection::kLocal;
  }
  if (pruning.has_first_block()) options.first_block = pruning.first_block();
  if (pruning.has_last_block()) options.last_block = pruning.last_block();
  return options;
}

SearchGranularity GranularityOf(const v1::Search& search) {
  switch (search.granularity()) {
    case v1::Search::BLOCK:
      return SearchGranularity::kBlock;
    case v1::Search::LINEAR:
      return SearchGranularity::kLinear;
    default:
      return SearchGranularity::kFusedGroup;
  }
}

absl::StatusOr<Format> FormatOf(const v1::Quantization& quantization, int bits) {
  const Format integers =
      Format::IntegerGroup(bits, quantization.group_size(), quantization.symmetric());
  switch (bits) {
    case 2:
    case 3:
      return quantization.low_bit() == v1::Quantization::INTEGER_GROUP ? integers
                                                                       : Format::NormalFloat(bits);
    case 4:
      switch (quantization.four_bit()) {
        case v1::Quantization::INT4_GROUP:
          return integers;
        case v1::Quantization::FP4:
          return Format::Float4(quantization.double_quantization());
        default:
          return Format::NormalFloat(4, quantization.double_quantization());
      }
    case 5:
    case 6:
    case 7:
      return integers;
    case 8:
      switch (quantization.eight_bit()) {
        case v1::Quantization::INT8_GROUP:
          return integers;
        case v1::Quantization::NF8:
          return Format::NormalFloat(8);
        default:
          return Format::Integer8Row();
      }
    case 16:
      return Format::Bfloat16();
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("search.candidate_bits: 2 to 8 and 16 are available, not ", bits));
  }
}

absl::StatusOr<std::vector<Format>> CandidateFormats(const v1::CompressionSpec& spec) {
  const std::set<int> widths(spec.search().candidate_bits().begin(),
                             spec.search().candidate_bits().end());
  std::vector<Format> formats;
  for (const int bits : widths) {
    ASSIGN_OR_RETURN(const Format format, FormatOf(spec.quantization(), bits));
    formats.push_back(format);
  }
  return formats;
}

GptqOptions GptqOptionsOf(const v1::Quantization& quantization) {
  return {.damping = quantization.damping(), .activation_order = quantization.activation_order()};
}

absl::StatusOr<FormatAssignment> AssignmentOf(
    const v1::CompressionSpec& spec,
    const google::protobuf::RepeatedPtrField<v1::GroupPrecision>& precisions,
    const ModelConfig& config) {
  std::map<std::string, int> bits_of;
  for (const v1::GroupPrecision& precision : precisions) {
    if (!bits_of.emplace(precision.group(), precision.bits()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("precisions: group ", precision.group(), " is named twice"));
    }
  }
  FormatAssignment assignment;
  for (const LinearGroup& group :
       MakeSearchGroups(config.num_blocks(), GranularityOf(spec.search()))) {
    const auto found = bits_of.find(group.name);
    if (found == bits_of.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("precisions: group ", group.name, " is missing"));
    }
    ASSIGN_OR_RETURN(const Format format, FormatOf(spec.quantization(), found->second));
    for (const LinearKind kind : group.linears) {
      assignment[LinearName(group.block, kind)] = format;
    }
    bits_of.erase(found);
  }
  if (!bits_of.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("precisions: the model has no group ", bits_of.begin()->first));
  }
  return assignment;
}

TrainerOptions TrainerOptionsOf(const v1::FineTune& fine_tune) {
  TrainerOptions options;
  options.batch_size = fine_tune.batch_size();
  options.micro_batch_size = fine_tune.micro_batch_size();
  options.sequence_length = fine_tune.sequence_length();
  options.learning_rate.peak = fine_tune.learning_rate();
  options.learning_rate.warmup_steps = fine_tune.warmup_steps();
  options.learning_rate.steps = fine_tune.steps();
  switch (fine_tune.schedule()) {
    case v1::FineTune::LINEAR:
      options.learning_rate.schedule = LearningRateSchedule::kLinear;
      break;
    case v1::FineTune::CONSTANT:
      options.learning_rate.schedule = LearningRateSchedule::kConstant;
      break;
    default:
      options.learning_rate.schedule = LearningRateSchedule::kCosine;
  }
  options.max_gradient_norm = fine_tune.max_gradient_norm();
  options.adam_w.weight_decay = fine_tune.weight_decay();
  options.dropout = fine_tune.dropout();
  options.evaluate_every = fine_tune.evaluate_every();
  options.seed = static_cast<uint64_t>(fine_tune.seed());
  return options;
}

at::ScalarType EvaluationDTypeOf(const v1::Evaluation& evaluation, at::ScalarType usual) {
  switch (evaluation.compute_type()) {
    case v1::Evaluation::FLOAT32:
      return at::kFloat;
    case v1::Evaluation::BFLOAT16:
      return at::kBFloat16;
    default:
      return usual;
  }
}

at::ScalarType TrainingDTypeOf(const v1::FineTune& fine_tune, at::ScalarType usual) {
  switch (fine_tune.compute_type()) {
    case v1::FineTune::FLOAT32:
      return at::kFloat;
    case v1::FineTune::BFLOAT16:
      return at::kBFloat16;
    default:
      return usual;
  }
}

std::optional<DistillationOptions> DistillationOptionsOf(const v1::FineTune& fine_tune) {
  if (!fine_tune.has_distillation()) return std::nullopt;
  return DistillationOptions{.weight = fine_tune.distillation().weight(),
                             .temperature = fine_tune.distillation().temperature()};
}

LoraOptions LoraOptionsOf(const v1::FineTune& fine_tune) {
  LoraOptions options;
  options.rank = fine_tune.rank();
  options.alpha = fine_tune.alpha();
  options.seed = static_cast<uint64_t>(fine_tune.seed());
  options.targets.clear();
  // LinearKind is in the order of Projection.
  for (const LinearKind kind : kLinearKinds) {
    const int projection = static_cast<int>(kind) + v1::FineTune::Q_PROJ;
    if (std::count(fine_tune.target_modules().begin(), fine_tune.target_modules().end(),
                   projection) > 0) {
      options.targets.push_back(kind);
    }
  }
  return options;
}

AdapterInit AdapterInitOf(const v1::FineTune& fine_tune) {
  return fine_tune.init() == v1::FineTune::ZERO ? AdapterInit::kZero : AdapterInit::kLoftq;
}

int LoftqIterationsOf(const v1::FineTune& fine_tune) { return fine_tune.loftq_iterations(); }

at::ScalarType ExportDTypeOf(const v1::Export& options) {
  return options.dtype() == v1::Export::FLOAT32 ? at::kFloat : at::kBFloat16;
}

}  // namespace qpruner::engine
