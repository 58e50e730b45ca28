#include "worker/engine/tasks/prepare_task.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/prune/pruning_plan.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/score/gradient_score.h"
#include "worker/engine/score/mutual_information.h"
#include "worker/engine/score/sensitivity.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/reference_file.h"
#include "worker/engine/tasks/source_uri.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/texts/dataset.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
using internal::v1::PrepareResult;
using internal::v1::SearchGroup;
using nlohmann::ordered_json;

// Fewer predictions than this say little about a model.
constexpr int64_t kMinEvaluationTokens = 256;
// Longer documents of the fine-tuning share are cut here; training joins and cuts them anyway.
constexpr int64_t kLongestDocument = 1 << 20;

// The token sequences that the job uses.
struct Texts {
  std::vector<TokenIds> calibration;
  std::vector<TokenIds> selection;
  std::vector<TokenIds> test;
  std::vector<TokenIds> fine_tune;
};

// The texts of a job, each file opened once.
class TextLibrary {
 public:
  TextLibrary(const Tokenizer& tokenizer, std::string builtin_dir, int64_t window_length)
      : tokenizer_(tokenizer),
        builtin_dir_(std::move(builtin_dir)),
        window_length_(window_length) {}

  absl::StatusOr<Dataset*> Open(const v1::TextDataset& dataset) {
    TextSource source;
    ASSIGN_OR_RETURN(source.path, ResolveText(dataset.uri(), builtin_dir_));
    if (dataset.has_document_separator()) source.document_separator = dataset.document_separator();
    source.window_length = window_length_;
    auto& opened = datasets_[{source.path, source.document_separator}];
    if (opened == nullptr) {
      ASSIGN_OR_RETURN(opened, Dataset::Open(source, tokenizer_));
    }
    return opened.get();
  }

 private:
  const Tokenizer& tokenizer_;
  const std::string builtin_dir_;
  const int64_t window_length_;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<Dataset>> datasets_;
};

// Adds the name of the spec's field to an error about it.
absl::Status About(absl::string_view field, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(field, ": ", absl::string_view(status.message())));
}

absl::StatusOr<Texts> ReadTexts(const v1::CompressionSpec& spec, const TextLimits& limits,
                                const Tokenizer& tokenizer, const std::string& builtin_dir) {
  TextLibrary library(tokenizer, builtin_dir, limits.evaluation_length);
  Texts texts;
  auto calibration = library.Open(spec.calibration().dataset());
  if (!calibration.ok()) return About("calibration", calibration.status());
  auto samples = (*calibration)
                     ->Samples(Share::kCalibration, limits.calibration_samples,
                               limits.calibration_length, limits.calibration_seed);
  if (!samples.ok()) return About("calibration", samples.status());
  texts.calibration = *std::move(samples);

  auto evaluation = library.Open(spec.evaluation().dataset());
  if (!evaluation.ok()) return About("evaluation", evaluation.status());
  const auto documents = [&](Share share, int64_t tokens) {
    return (*evaluation)
        ->Documents(share, limits.evaluation_length, tokens,
                    std::min(tokens, kMinEvaluationTokens));
  };
  auto selection = documents(Share::kSelection, limits.selection_tokens);
  if (!selection.ok()) return About("evaluation", selection.status());
  texts.selection = *std::move(selection);
  auto test = documents(Share::kTest, limits.test_tokens);
  if (!test.ok()) return About("evaluation", test.status());
  texts.test = *std::move(test);

  const TrainerOptions trainer = TrainerOptionsOf(spec.fine_tune());
  if (trainer.steps > 0) {
    auto fine_tune = library.Open(spec.fine_tune().dataset());
    if (!fine_tune.ok()) return About("fine_tune", fine_tune.status());
    auto training = (*fine_tune)
                        ->Documents(Share::kFineTune, kLongestDocument,
                                    trainer.steps * trainer.batch_size * trainer.sequence_length);
    if (!training.ok()) return About("fine_tune", training.status());
    texts.fine_tune = *std::move(training);
  }
  return texts;
}

// Lowers `length` to what the model can see, and says so.
void LowerToPositions(absl::string_view field, int64_t positions, int64_t& length,
                      PrepareResult& result) {
  if (length <= positions) return;
  result.add_notes(absl::StrCat(field, " was lowered from ", length, " to ", positions,
                                ", the model's positions"));
  length = positions;
}

// The type that all of a checkpoint's weights can be stored in without loss: bfloat16 if they are
// in it, else float32 (which holds float16).
at::ScalarType StoredDType(const Checkpoint& checkpoint) {
  for (const ExpectedTensor& tensor : ExpectedTensors(checkpoint.config())) {
    if (checkpoint.tensor(tensor.name).dtype != DType::kBF16) return at::kFloat;
  }
  return at::kBFloat16;
}

ReferenceShare MeasureReference(WeightSource& original, std::vector<TokenIds> sequences,
                                const Phase& phase) {
  ReferenceShare share;
  share.sequences = std::move(sequences);
  share.batches = MakeBatches(share.sequences);
  share.hidden = ForwardHidden(original, BatchIds(share.batches),
                               phase.Blocks(original.config().num_blocks()));
  for (at::Tensor& hidden : share.hidden) hidden = hidden.to(at::kFloat);
  return share;
}

std::vector<double> ToVector(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  return std::vector<double>(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
}

// What kept and dropped groups scored.
ordered_json PruningReport(const std::vector<BlockImportance>& importance,
                           const PruningPlan& plan) {
  ordered_json blocks = ordered_json::array();
  for (size_t block = 0; block < importance.size(); ++block) {
    blocks.push_back({{"block", block},
                      {"kept_kv_heads", plan.blocks[block].kv_heads},
                      {"kept_mlp_channels", plan.blocks[block].mlp_channels},
                      {"kv_head_importance", ToVector(importance[block].kv_heads)},
                      {"mlp_channel_importance", ToVector(importance[block].mlp_channels)}});
  }
  return blocks;
}

// Says so if mutual information is not told apart from what shuffled targets give (METHODS: with
// few samples over 16 x 16 bins it usually is not).
void NoteMutualInformation(const MutualInformationScores& scores, PrepareResult& result) {
  size_t above = 0;
  double sum = 0, control_sum = 0;
  for (const MutualInformation& score : scores.groups) {
    above += score.nats > score.control_nats ? 1 : 0;
    sum += score.nats;
    control_sum += score.control_nats;
  }
  // Noise alone would put about half of them above, and the means on a par.
  if (10 * above >= 9 * scores.groups.size() && sum >= 1.25 * control_sum) return;
  const double count = static_cast<double>(std::max<size_t>(scores.groups.size(), 1));
  result.add_notes(absl::StrFormat(
      "Mutual information does not separate from its shuffled control (%d samples: mean %.3f "
      "against %.3f nats, %d of %d groups above their control); plans made from it say little",
      scores.sample_count, sum / count, control_sum / count, above, scores.groups.size()));
}

}  // namespace

absl::StatusOr<PrepareResult> RunPrepare(const v1::CompressionSpec& spec,
                                         const std::string& builtin_dir,
                                         const std::string& output_dir, at::Device device,
                                         ProgressReporter& progress) {
  PrepareResult result;

  // All that can be refused without work.
  const Phase checking(progress, 0, 0.03, "checking the model");
  ASSIGN_OR_RETURN(const std::string folder, ResolveModel(spec.model().uri(), builtin_dir));
  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(folder));
  const ModelConfig& original_config = checkpoint->config();
  const PruningOptions pruning = PruningOptionsOf(spec.pruning());
  RETURN_IF_ERROR(CheckPruning(original_config, pruning));
  ASSIGN_OR_RETURN(const std::vector<Format> formats, CandidateFormats(spec));
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(folder, original_config.vocab_size));
  TextLimits limits = TextLimitsOf(spec);
  LowerToPositions("calibration.sequence_length", original_config.max_position_embeddings,
                   limits.calibration_length, result);
  LowerToPositions("evaluation.sequence_length", original_config.max_position_embeddings,
                   limits.evaluation_length, result);
  RETURN_IF_ERROR(checkpoint->CheckFinite());
  checking.Done(0.5);
  ASSIGN_OR_RETURN(Texts texts, ReadTexts(spec, limits, *tokenizer, builtin_dir));

  const at::ScalarType stored = StoredDType(*checkpoint);
  const auto original = MakeCheckpointSource(checkpoint, device, ComputeDType(device, stored));

  Reference reference;
  reference.selection = MeasureReference(
      *original, std::move(texts.selection),
      Phase(progress, 0.03, 0.12, "measuring the original on the selection share"));
  reference.test =
      MeasureReference(*original, std::move(texts.test),
                       Phase(progress, 0.12, 0.27, "measuring the original on the test share"));
  reference.fine_tune = std::move(texts.fine_tune);
  const at::Tensor original_head = original->Head();
  const ReferenceStates test_states{reference.test.hidden, original_head};
  const ReferenceStates selection_states{reference.selection.hidden, original_head};
  // Without a reference: its divergence from itself is 0.
  *result.mutable_original_test() =
      CheckpointMetrics(original_config, checkpoint->weight_bytes(),
                        Evaluate(reference.test.batches, reference.test.hidden, original_head));

  // Prune.
  const std::vector<TokenBatch> calibration = MakeBatches(texts.calibration);
  PruningPlan plan;
  ordered_json pruning_report = nullptr;
  if (pruning.ratio > 0) {
    const Phase scoring(progress, 0.27, 0.42, "scoring heads and channels");
    const std::vector<BlockImportance> importance =
        ScoreGroups(*original, calibration, ImportanceOptionsOf(spec), scoring.Fractions());
    ASSIGN_OR_RETURN(plan, MakePruningPlan(original_config, importance, pruning));
    pruning_report = PruningReport(importance, plan);
  }
  {
    const Phase writing(progress, 0.42, 0.45, "writing the pruned model");
    std::unique_ptr<WeightSource> pruned;
    if (pruning.ratio > 0) pruned = std::make_unique<PrunedSource>(*original, plan);
    RETURN_IF_ERROR(WriteHfModel(absl::StrCat(output_dir, "/", kPreparedFolder),
                                 pruned ? *pruned : *original,
                                 {.dtype = stored, .tokenizer_folder = folder})
                        .status());
    RETURN_IF_ERROR(WriteReference(absl::StrCat(output_dir, "/", kReferencePath), reference));
  }
  // From here on the model is what was written.
  ASSIGN_OR_RETURN(const auto prepared,
                   Checkpoint::Open(absl::StrCat(output_dir, "/", kPreparedFolder)));
  const auto streamed = MakeCheckpointSource(prepared, device, ComputeDType(device, stored));
  const auto resident = MakeResident(*streamed);
  WeightSource& model = resident ? *resident : *streamed;
  const ModelConfig& config = model.config();

  // Measure.
  const auto measure = [&](const ReferenceShare& share, const ReferenceStates& states,
                           const Phase& phase) {
    return CheckpointMetrics(
        config, prepared->weight_bytes(),
        EvaluateModel(model, share.batches, &states, phase.Blocks(config.num_blocks())));
  };
  *result.mutable_pruned_selection() =
      measure(reference.selection, selection_states,
              Phase(progress, 0.45, 0.53, "measuring the pruned model on the selection share"));
  *result.mutable_pruned_test() =
      measure(reference.test, test_states,
              Phase(progress, 0.53, 0.65, "measuring the pruned model on the test share"));

  // Score.
  const std::vector<LinearGroup> groups =
      MakeSearchGroups(config.num_blocks(), GranularityOf(spec.search()));
  std::vector<std::vector<double>> sensitivities, gradients;
  MutualInformationScores information;
  {
    const Phase phase(progress, 0.65, 0.9, "measuring the layers' sensitivities");
    sensitivities =
        MeasureSensitivity(model, calibration, groups, formats, RoundToNearest, phase.Fractions());
  }
  {
    const Phase phase(progress, 0.9, 0.96, "scoring the layers by gradients");
    gradients =
        ScoreByGradient(model, calibration, groups, formats, RoundToNearest, phase.Fractions());
  }
  {
    const Phase phase(progress, 0.96, 1, "estimating mutual information");
    information = MeasureMutualInformation(model, calibration, groups,
                                           {.seed = static_cast<uint64_t>(limits.calibration_seed)},
                                           phase.Fractions());
  }

  ordered_json group_report = ordered_json::array();
  for (size_t i = 0; i < groups.size(); ++i) {
    const BlockShape& shape = config.blocks[static_cast<size_t>(groups[i].block)];
    SearchGroup& group = *result.add_groups();
    group.set_name(groups[i].name);
    group.set_mutual_information(information.groups[i].nats);
    group.set_mutual_information_control(information.groups[i].control_nats);
    ordered_json choices = ordered_json::array();
    for (const LinearKind kind : groups[i].linears) {
      group.add_linears(LinearName(groups[i].block, kind));
      const std::vector<int64_t> linear = LinearShape(config, shape, kind);
      group.set_parameter_count(group.parameter_count() + linear[0] * linear[1]);
    }
    for (size_t f = 0; f < formats.size(); ++f) {
      int64_t bytes = 0;
      for (const LinearKind kind : groups[i].linears) {
        const std::vector<int64_t> linear = LinearShape(config, shape, kind);
        bytes += PackedBytes(formats[f], linear[0], linear[1]);
      }
      auto& choice = *group.add_choices();
      choice.set_bits(NominalBits(formats[f]));
      choice.set_bytes(bytes);
      choice.set_sensitivity(sensitivities[i][f]);
      choice.set_gradient_score(gradients[i][f]);
      choices.push_back({{"bits", choice.bits()},
                         {"format", FormatName(formats[f])},
                         {"bytes", bytes},
                         {"sensitivity_nats", sensitivities[i][f]},
                         {"gradient_score_nats", gradients[i][f]}});
    }
    group_report.push_back({{"group", groups[i].name},
                            {"parameters", group.parameter_count()},
                            {"mutual_information_nats", information.groups[i].nats},
                            {"mutual_information_control_nats", information.groups[i].control_nats},
                            {"choices", std::move(choices)}});
  }
  result.set_fixed_bytes(FixedBytes(config));
  result.set_mutual_information_sample_count(static_cast<int32_t>(information.sample_count));
  NoteMutualInformation(information, result);
  if (!config.uniform()) {
    result.add_notes(
        "The blocks differ in shape (layout PER_LAYER): only software that reads "
        "\"qpruner_block_shapes\" in config.json loads the exported model");
  }

  ordered_json report;
  report["calibration"] = {{"samples", texts.calibration.size()},
                           {"tokens_each", limits.calibration_length},
                           {"seed", limits.calibration_seed}};
  report["units"] = {
      {"sensitivity_nats", "mean KL(pruned || pruned with only this group quantized), a token"},
      {"gradient_score_nats", "first-order estimate of the same"},
      {"mutual_information_nats", "I(mean-pooled output; argmax of the logits)"}};
  report["mutual_information_samples"] = information.sample_count;
  report["groups"] = std::move(group_report);
  report["pruning"] = std::move(pruning_report);
  std::error_code error;
  const std::string scores = absl::StrCat(output_dir, "/", kScoresPath);
  fs::create_directories(fs::path(scores).parent_path(), error);
  RETURN_IF_ERROR(WriteFileDurably(scores, report.dump(1)));
  return result;
}

}  // namespace qpruner::engine
