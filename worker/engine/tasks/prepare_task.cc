#include "worker/engine/tasks/prepare_task.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "worker/engine/calibrate/activation_scaling.h"
#include "worker/engine/calibrate/weight_database.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/export/gguf_model.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/tokenizer_files.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/host_store.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/iterative_pruning.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/prune/pruning_plan.h"
#include "worker/engine/prune/width_search.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/score/gradient_score.h"
#include "worker/engine/score/mutual_information.h"
#include "worker/engine/score/sensitivity.h"
#include "worker/engine/tasks/budget_check.h"
#include "worker/engine/tasks/exports.h"
#include "worker/engine/tasks/gguf_export.h"
#include "worker/engine/tasks/job_tasks.h"
#include "worker/engine/tasks/job_texts.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/original_model.h"
#include "worker/engine/tasks/prepare_checkpoint.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/recovery.h"
#include "worker/engine/tasks/reference_file.h"
#include "worker/engine/tasks/score_report.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/tasks/task_use.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

using internal::v1::PrepareResult;
using nlohmann::ordered_json;

// The token that ends an answer, as config.json names it (the first, if it names several).
std::optional<int32_t> EosOf(const ModelConfig& config) {
  const auto found = config.source.find("eos_token_id");
  if (found == config.source.end()) return std::nullopt;
  const nlohmann::json& eos = found->is_array() && !found->empty() ? found->front() : *found;
  if (!eos.is_number_integer()) return std::nullopt;
  const auto id = eos.get<int64_t>();
  if (id < 0 || id >= config.vocab_size) return std::nullopt;
  return static_cast<int32_t>(id);
}

ReferenceShare MeasureReference(WeightSource& original, std::vector<Window> windows,
                                int64_t batch_tokens, const Phase& phase) {
  ReferenceShare share;
  share.windows = std::move(windows);
  share.batches = BatchWindows(share.windows, batch_tokens);
  share.hidden = ForwardHidden(original, BatchIds(share.batches),
                               phase.Blocks(original.config().num_blocks()));
  if (original.dtype() == at::kFloat) return share;
  HostStore waiting = HostStore::Beside(original.device());
  for (at::Tensor& hidden : share.hidden) hidden = waiting.Keep(hidden.to(at::kFloat));
  return share;
}

// One run of the task. Its steps are called in the order of their declaration; each leaves what the
// next ones need.
class Preparation {
 public:
  Preparation(v1::CompressionSpec spec, const std::string& input_dir,
              const std::string& builtin_dir, const std::string& output_dir, at::Device device,
              Clock& clock, ProgressReporter& progress)
      : spec_(std::move(spec)),
        input_dir_(input_dir),
        builtin_dir_(builtin_dir),
        output_dir_(output_dir),
        prepared_dir_(absl::StrCat(output_dir, "/", kPreparedFolder)),
        reference_path_(absl::StrCat(output_dir, "/", kReferencePath)),
        scores_path_(absl::StrCat(output_dir, "/", kScoresPath)),
        weights_dir_(absl::StrCat(output_dir, "/", kWeightDatabaseFolder)),
        device_(device),
        clock_(clock),
        progress_(progress) {}

  // Opens model, tokenizer and texts, and refuses all that can be refused without a forward pass.
  absl::Status CheckInputs();
  // Takes over what an earlier attempt has saved. Returns the stage that it had come to.
  std::optional<PrepareStage> GoOn();
  // The original's perplexity, and its states that all others are compared to.
  absl::Status MeasureOriginal();
  // Decides what is removed; writes the prepared model and the reference.
  absl::Status Prune();
  absl::Status PruneBySearch();
  absl::Status WritePrepared();
  // From here on the model is what was written.
  absl::Status OpenPrepared();
  absl::Status MeasurePrepared();
  // With GPTQ: every linear in every candidate format, once for all trials.
  absl::Status QuantizeCandidates();
  void ScoreGroups();
  absl::Status Report();

  // What is done by now is there for a later attempt.
  void SaveState(PrepareStage stage);

  PrepareResult TakeResult() && { return std::move(result_); }

 private:
  // The pruned model's shape, where no score decides it.
  std::optional<ModelConfig> ShapeKnownAhead(const ModelConfig& config) const;
  // Whether the pruned model can meet the budget and be exported.
  absl::Status CheckShape(const ModelConfig& pruned) const;
  // Whether it can be fine-tuned within the memory limit.
  absl::Status CheckFineTuning(const ModelConfig& pruned) const;
  // Whether the outputs that an earlier attempt has left are those of this one.
  absl::Status CheckTaken(PrepareStage stage);
  v1::ModelMetrics MeasurePreparedOn(const ReferenceShare& share, const Phase& phase);
  // How many blocks' files of the weight database an earlier attempt has left.
  int64_t TakeQuantizedBlocks();
  SavedScores TakeScores();

  v1::CompressionSpec spec_;  // From CheckInputs on as the model can follow it.
  const std::string& input_dir_;
  const std::string& builtin_dir_;
  const std::string& output_dir_;
  const std::string prepared_dir_;
  const std::string reference_path_;
  const std::string scores_path_;
  const std::string weights_dir_;
  const at::Device device_;
  Clock& clock_;
  ProgressReporter& progress_;
  PrepareResult result_;

  // Set by CheckInputs.
  std::string folder_;  // Of the original model.
  std::shared_ptr<const Checkpoint> checkpoint_;
  at::ScalarType stored_ = at::kFloat;
  at::ScalarType evaluation_dtype_ = at::kFloat;
  MemoryPlan memory_;  // For the original, and so for the pruned model.
  std::unique_ptr<WeightSource> original_;
  PruningOptions pruning_;
  TextLimits limits_;
  JobTexts texts_;
  std::vector<ChoiceTask> tasks_;
  std::vector<TokenBatch> calibration_;
  GroupScores scores_;
  std::optional<PrepareCheckpoint> saved_;
  Reference reference_;  // Its shares set by MeasureOriginal, or GoOn if they are still needed.
  // Set by MeasureOriginal or OpenPrepared.
  at::Tensor original_head_;
  // Set by Prune, where there is something to prune.
  std::optional<PruningPlan> plan_;
  ordered_json pruning_report_ = nullptr;
  // Set by OpenPrepared.
  std::shared_ptr<const Checkpoint> prepared_;
  std::unique_ptr<WeightSource> model_;
  // Set by QuantizeCandidates, with GPTQ.
  std::unique_ptr<WeightDatabase> weights_;
};

absl::Status Preparation::CheckInputs() {
  const Phase phase(progress_, 0, 0.03, "checking the model");
  ASSIGN_OR_RETURN(OriginalModel original,
                   OpenOriginalModel(spec_.model().uri(), builtin_dir_, input_dir_, device_));
  folder_ = std::move(original.folder);
  checkpoint_ = std::move(original.checkpoint);
  stored_ = original.stored;
  original_ = std::move(original.source);
  evaluation_dtype_ = EvaluationDTypeOf(spec_.evaluation(), original_->dtype());
  const ModelConfig& config = checkpoint_->config();
  pruning_ = PruningOptionsOf(spec_.pruning());
  RETURN_IF_ERROR(CheckPruning(config, pruning_));
  if (spec_.pruning().has_parameter_ratio()) {
    RETURN_IF_ERROR(CheckWidthSearch(config, spec_.pruning().parameter_ratio(), pruning_));
  }
  if (spec_.fine_tune().steps() > 0) {
    RETURN_IF_ERROR(CheckTrainer(TrainerOptionsOf(spec_.fine_tune())));
  }
  ASSIGN_OR_RETURN(scores_.formats, CandidateFormats(spec_));
  if (const auto pruned = ShapeKnownAhead(config)) RETURN_IF_ERROR(CheckShape(*pruned));
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(folder_, config.vocab_size));
  if (WantsExport(spec_.export_(), v1::Export::GGUF)) {
    // Now rather than when all the work is done. Pruning keeps the shapes' being alike.
    ASSIGN_OR_RETURN(const TokenizerFiles files, ReadTokenizerFiles(folder_));
    if (absl::Status status = CheckGgufModel(config, files); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("export.formats: ", absl::string_view(status.message())));
    }
  }
  for (std::string& note : LowerToPositions(config.max_position_embeddings, spec_)) {
    result_.add_notes(std::move(note));
  }
  limits_ = TextLimitsOf(spec_);
  RETURN_IF_ERROR(checkpoint_->CheckFinite());
  phase.Done(0.5);
  ASSIGN_OR_RETURN(texts_, ReadJobTexts(spec_, limits_, *tokenizer, EosOf(config), builtin_dir_));
  ASSIGN_OR_RETURN(tasks_,
                   ReadJobTasks(spec_.evaluation(), *tokenizer, config.max_position_embeddings));
  const at::ScalarType compute = ComputeDType(device_, stored_);
  reference_.longest_sequence = limits_.evaluation_length;
  for (const ChoiceTask& task : tasks_) {
    reference_.longest_sequence = std::max(reference_.longest_sequence, LongestInput(task));
  }
  const auto is_quantized = [](const Format& format) {
    return format.kind != FormatKind::kBfloat16;
  };
  ASSIGN_OR_RETURN(
      memory_,
      PlanTask(
          spec_.limits(), *checkpoint_, device_, compute,
          {.longest_sequence = std::max(limits_.calibration_length, reference_.longest_sequence),
           .formats = std::count_if(scores_.formats.begin(), scores_.formats.end(), is_quantized),
           .input_moments = spec_.quantization().method() == v1::Quantization::GPTQ ||
                            spec_.quantization().activation_scaling()}));
  if (const auto pruned = ShapeKnownAhead(config)) RETURN_IF_ERROR(CheckFineTuning(*pruned));
  progress_.Log(memory_.ToString());
  calibration_ = MakeBatches(texts_.calibration, memory_.batch_tokens);
  original_ = OpenStreamed(checkpoint_, device_, compute, memory_);
  saved_.emplace(input_dir_, output_dir_, PrepareFingerprint(spec_, *checkpoint_, texts_, tasks_),
                 progress_);
  return absl::OkStatus();
}

std::optional<PrepareStage> Preparation::GoOn() {
  absl::StatusOr<PrepareState> state = saved_->TakeState();
  if (absl::IsNotFound(state.status())) return std::nullopt;
  absl::Status usable = state.status();
  if (usable.ok()) usable = CheckTaken(state->stage);
  if (!usable.ok()) {
    saved_->Forget();
    progress_.Log(
        absl::StrCat("Preparing starts from the beginning: ", absl::string_view(usable.message())),
        /*warning=*/true);
    return std::nullopt;
  }
  result_ = std::move(state->result);
  pruning_report_ = std::move(state->pruning);
  progress_.Log(absl::StrCat("Preparing goes on from the ",
                             state->stage == PrepareStage::kMeasured ? "measured" : "pruned",
                             " model, where an earlier attempt had saved it"));
  return state->stage;
}

absl::Status Preparation::CheckTaken(PrepareStage stage) {
  ASSIGN_OR_RETURN(const auto prepared, Checkpoint::Open(prepared_dir_));
  RETURN_IF_ERROR(CheckShape(prepared->config()));
  ASSIGN_OR_RETURN(const int64_t longest, ReadLongestSequence(reference_path_));
  if (longest != reference_.longest_sequence) {
    return absl::InvalidArgumentError("Its reference is of other texts");
  }
  if (stage == PrepareStage::kMeasured) return absl::OkStatus();
  ASSIGN_OR_RETURN(Reference reference, ReadReference(reference_path_, memory_.batch_tokens));
  if (reference.selection.windows != texts_.selection || reference.test.windows != texts_.test ||
      reference.fine_tune != texts_.fine_tune) {
    return absl::InvalidArgumentError("Its reference is of other texts");
  }
  reference_ = std::move(reference);
  return absl::OkStatus();
}

void Preparation::SaveState(PrepareStage stage) {
  saved_->Save({.stage = stage, .result = result_, .pruning = pruning_report_});
}

std::optional<ModelConfig> Preparation::ShapeKnownAhead(const ModelConfig& config) const {
  if (spec_.pruning().has_parameter_ratio() || pruning_.selection != PruningSelection::kLocal) {
    return std::nullopt;
  }
  if (pruning_.ratio == 0) return config;
  return PrunedConfig(config, CountKept(config, FullPlan(config), {}, pruning_, pruning_.steps));
}

absl::Status Preparation::CheckShape(const ModelConfig& pruned) const {
  RETURN_IF_ERROR(CheckExports(spec_, pruned, scores_.formats));
  return CheckBudget(spec_.search(), pruned, scores_.formats);
}

absl::Status Preparation::CheckFineTuning(const ModelConfig& pruned) const {
  if (spec_.fine_tune().steps() == 0) return absl::OkStatus();
  TrainerOptions trainer = TrainerOptionsOf(spec_.fine_tune());
  return PlanRecovery(spec_.fine_tune(), pruned, checkpoint_->config(),
                      ComputeDType(device_, stored_), device_, memory_.limit_bytes,
                      {.batch_tokens = memory_.batch_tokens, .length = limits_.evaluation_length},
                      trainer)
      .status();
}

absl::Status Preparation::MeasureOriginal() {
  CastSource original(*original_, evaluation_dtype_);
  reference_.selection = MeasureReference(
      original, std::move(texts_.selection), memory_.batch_tokens,
      Phase(progress_, 0.03, 0.12, "measuring the original on the selection share"));
  reference_.fine_tune = std::move(texts_.fine_tune);
  original_head_ = original.Head();
  // Without a reference: its divergence from itself is 0.
  const std::vector<TokenBatch> batches = BatchWindows(texts_.test, memory_.batch_tokens);
  const TokenMetrics measured = Timed(clock_, batches, [&] {
    reference_.test =
        MeasureReference(original, std::move(texts_.test), memory_.batch_tokens,
                         Phase(progress_, 0.12, 0.2, "measuring the original on the test share"));
    const ReferenceStates states = StatesIn(reference_.test, original_head_, evaluation_dtype_);
    return Evaluate(reference_.test.batches, states.hidden, states.head);
  });
  *result_.mutable_original_test() = CheckpointMetrics(*checkpoint_, measured);
  if (tasks_.empty()) return absl::OkStatus();
  return ScoreJobTasks(original, tasks_, memory_.batch_tokens, "original", output_dir_,
                       Phase(progress_, 0.2, 0.27, "scoring the original on the tasks"),
                       *result_.mutable_original_test());
}

absl::Status Preparation::Prune() {
  if (spec_.pruning().has_parameter_ratio()) return PruneBySearch();
  if (pruning_.ratio == 0) return absl::OkStatus();
  const Phase phase(progress_, 0.27, 0.42, "scoring heads and channels");
  ASSIGN_OR_RETURN(PruningOutcome outcome,
                   PruneInSteps(*original_, calibration_, ImportanceOptionsOf(spec_), pruning_,
                                phase.Fractions()));
  plan_ = std::move(outcome.plan);
  pruning_report_ = PruningReport(outcome.importance, *plan_);
  return absl::OkStatus();
}

absl::Status Preparation::PruneBySearch() {
  std::vector<BlockImportance> importance;
  {
    const Phase phase(progress_, 0.27, 0.35, "scoring heads and channels");
    importance = engine::ScoreGroups(*original_, calibration_, ImportanceOptionsOf(spec_),
                                     phase.Fractions());
  }
  const Phase phase(progress_, 0.35, 0.42, "searching widths");
  ASSIGN_OR_RETURN(WidthSearchOutcome outcome,
                   SearchWidths(*original_, calibration_, importance,
                                spec_.pruning().parameter_ratio(), pruning_, phase.Fractions()));
  plan_ = std::move(outcome.plan);
  pruning_report_ = PruningReport(importance, *plan_);
  pruning_report_["width_search"] = WidthSearchReport(outcome);
  const WidthCandidate& plain = outcome.candidates.front();
  const WidthCandidate& best = outcome.candidates[outcome.best];
  result_.add_notes(absl::StrFormat(
      "Width search: of %d plans, \"%s\" (%d parameters) is nearest to the original on the "
      "calibration samples: %.4f nats a token; one ratio for heads and channels (%d parameters): "
      "%.4f",
      outcome.candidates.size(), best.origin, best.parameter_count, best.divergence,
      plain.parameter_count, plain.divergence));
  return absl::OkStatus();
}

absl::Status Preparation::WritePrepared() {
  std::unique_ptr<WeightSource> pruned, scaled;
  if (plan_) pruned = std::make_unique<PrunedSource>(*original_, *plan_);
  WeightSource* model = pruned ? pruned.get() : original_.get();
  // Before hours of work on a model that is too large or cannot be exported as asked.
  RETURN_IF_ERROR(CheckShape(model->config()));
  RETURN_IF_ERROR(CheckFineTuning(model->config()));
  if (spec_.quantization().activation_scaling()) {
    const Phase phase(progress_, 0.42, 0.43, "scaling channels by their activations");
    ActivationScaling scaling = FindActivationScaling(*model, calibration_, scores_.formats.front(),
                                                      /*grid_size=*/20, phase.Fractions());
    progress_.Log(absl::StrFormat(
        "Activation-aware scaling leaves %.1f %% of the mean square error of the layers' outputs "
        "at %s",
        100 * scaling.error_scaled /
            std::max(scaling.error_unscaled, std::numeric_limits<double>::min()),
        FormatName(scores_.formats.front())));
    scaled = std::make_unique<ScaledSource>(*model, std::move(scaling.blocks));
    model = scaled.get();
  }
  const Phase phase(progress_, 0.43, 0.45, "writing the pruned model");
  RETURN_IF_ERROR(
      WriteHfModel(prepared_dir_, *model, {.dtype = stored_, .tokenizer_from = folder_}).status());
  RETURN_IF_ERROR(KeepJobTasks(prepared_dir_, tasks_));
  return WriteReference(reference_path_, reference_);
}

absl::Status Preparation::OpenPrepared() {
  ASSIGN_OR_RETURN(prepared_, Checkpoint::Open(prepared_dir_));
  original_.reset();
  model_ = OpenStreamed(prepared_, device_, ComputeDType(device_, stored_), memory_);
  if (auto resident = MakeResident(*model_, memory_)) model_ = std::move(resident);
  // The head is never pruned, and stored without loss.
  if (!original_head_.defined()) original_head_ = CastSource(*model_, evaluation_dtype_).Head();
  return absl::OkStatus();
}

v1::ModelMetrics Preparation::MeasurePreparedOn(const ReferenceShare& share, const Phase& phase) {
  const ReferenceStates states = StatesIn(share, original_head_, evaluation_dtype_);
  CastSource model(*model_, evaluation_dtype_);
  return CheckpointMetrics(*prepared_, Timed(clock_, share.batches, [&] {
    return EvaluateModel(model, share.batches, &states, phase.Blocks(model.config().num_blocks()));
  }));
}

absl::Status Preparation::MeasurePrepared() {
  *result_.mutable_pruned_selection() = MeasurePreparedOn(
      reference_.selection,
      Phase(progress_, 0.45, 0.53, "measuring the pruned model on the selection share"));
  *result_.mutable_pruned_test() = MeasurePreparedOn(
      reference_.test,
      Phase(progress_, 0.53, 0.59, "measuring the pruned model on the test share"));
  if (tasks_.empty()) return absl::OkStatus();
  CastSource model(*model_, evaluation_dtype_);
  return ScoreJobTasks(model, tasks_, memory_.batch_tokens, "pruned", output_dir_,
                       Phase(progress_, 0.59, 0.65, "scoring the pruned model on the tasks"),
                       *result_.mutable_pruned_test());
}

absl::Status Preparation::QuantizeCandidates() {
  if (spec_.quantization().method() != v1::Quantization::GPTQ) return absl::OkStatus();
  const Phase phase(progress_, 0.65, 0.75, "quantizing every layer with GPTQ");
  const int64_t there = TakeQuantizedBlocks();
  if (there > 0) {
    progress_.Log(absl::StrCat("GPTQ goes on after ", there, " of ", model_->config().num_blocks(),
                               " blocks, which an earlier attempt had quantized"));
  }
  if (there < model_->config().num_blocks()) {
    RETURN_IF_ERROR(WriteWeightDatabase(
        weights_dir_, *model_, calibration_, scores_.formats, GptqOptionsOf(spec_.quantization()),
        phase.Fractions(),
        {.written_blocks = there, .on_block = [this](int64_t block) {
           saved_->AddOutput(absl::StrCat(kWeightDatabaseFolder, "/", WeightDatabaseFile(block)));
         }}));
  }
  ASSIGN_OR_RETURN(weights_, WeightDatabase::Open(weights_dir_, model_->config(), scores_.formats));
  return absl::OkStatus();
}

int64_t Preparation::TakeQuantizedBlocks() {
  for (int64_t block = 0; block < model_->config().num_blocks(); ++block) {
    const absl::Status taken = saved_->TakeOutput(
        absl::StrCat(kWeightDatabaseFolder, "/", WeightDatabaseFile(block)), [&] {
          return OpenWeightDatabaseBlock(weights_dir_, model_->config(), scores_.formats, block)
              .status();
        });
    if (taken.ok()) continue;
    if (!absl::IsNotFound(taken)) {
      progress_.Log(absl::StrCat("What an earlier attempt had quantized is passed over: ",
                                 absl::string_view(taken.message())),
                    /*warning=*/true);
    }
    return block;
  }
  return model_->config().num_blocks();
}

SavedScores Preparation::TakeScores() {
  const int64_t blocks = model_->config().num_blocks();
  absl::StatusOr<SavedScores> scores =
      saved_->TakeScores(scores_.groups.size(), scores_.formats.size(), blocks);
  if (scores.ok()) {
    progress_.Log(absl::StrCat("Scoring goes on after ", scores->measured_blocks, " of ", blocks,
                               " blocks, which an earlier attempt had measured"));
    return *std::move(scores);
  }
  if (!absl::IsNotFound(scores.status())) {
    progress_.Log(absl::StrCat("What an earlier attempt had scored is passed over: ",
                               absl::string_view(scores.status().message())),
                  /*warning=*/true);
  }
  return {};
}

void Preparation::ScoreGroups() {
  scores_.groups = MakeSearchGroups(model_->config().num_blocks(), GranularityOf(spec_.search()));
  const QuantizedWeight quantized = [this](int64_t block, LinearKind kind, const at::Tensor& weight,
                                           const Format& format) {
    std::optional<PackedWeight> found;
    if (weights_) found = weights_->Find(block, kind, format);
    return found ? Dequantize(*found, weight.scalar_type(), weight.device())
                 : RoundToNearest(weight, format);
  };
  const int64_t blocks = model_->config().num_blocks();
  SavedScores known = TakeScores();
  scores_.sensitivities = known.sensitivities;
  if (known.measured_blocks < blocks) {
    const Phase phase(progress_, weights_ ? 0.75 : 0.65, 0.9,
                      "measuring the layers' sensitivities");
    scores_.sensitivities = MeasureSensitivity(
        *model_, calibration_, scores_.groups, scores_.formats, quantized, phase.Fractions(),
        {.measured_blocks = known.measured_blocks,
         .sensitivities = std::move(known.sensitivities),
         .on_block = [this](int64_t measured, const std::vector<std::vector<double>>& so_far) {
           saved_->SaveScores({.measured_blocks = measured, .sensitivities = so_far});
         }});
  }
  scores_.gradient_scores = std::move(known.gradient_scores);
  if (scores_.gradient_scores.empty()) {
    const Phase phase(progress_, 0.9, 0.96, "scoring the layers by gradients");
    scores_.gradient_scores = ScoreByGradient(*model_, calibration_, scores_.groups,
                                              scores_.formats, quantized, phase.Fractions());
    saved_->SaveScores({.measured_blocks = blocks,
                        .sensitivities = scores_.sensitivities,
                        .gradient_scores = scores_.gradient_scores});
  }
  const Phase phase(progress_, 0.96, 1, "estimating mutual information");
  scores_.information = MeasureMutualInformation(
      *model_, calibration_, scores_.groups,
      {.seed = static_cast<uint64_t>(limits_.calibration_seed)}, phase.Fractions());
}

absl::Status Preparation::Report() {
  const ModelConfig& config = model_->config();
  DescribeSearchSpace(config, scores_, result_);
  if (!config.uniform()) {
    result_.add_notes(
        "The blocks differ in shape (layout PER_LAYER): only software that reads "
        "\"qpruner_block_shapes\" in config.json loads the exported model");
  }
  return WriteScoreReport(scores_path_,
                          {.samples = static_cast<int64_t>(texts_.calibration.size()),
                           .tokens_each = limits_.calibration_length,
                           .seed = limits_.calibration_seed},
                          scores_, config, std::move(pruning_report_));
}

}  // namespace

absl::StatusOr<PrepareResult> RunPrepare(const v1::CompressionSpec& spec,
                                         const std::string& input_dir,
                                         const std::string& builtin_dir,
                                         const std::string& output_dir, at::Device device,
                                         Clock& clock, ProgressReporter& progress) {
  Preparation preparation(spec, input_dir, builtin_dir, output_dir, device, clock, progress);
  RETURN_IF_ERROR(preparation.CheckInputs());
  const std::optional<PrepareStage> done = preparation.GoOn();
  if (!done) {
    RETURN_IF_ERROR(preparation.MeasureOriginal());
    RETURN_IF_ERROR(preparation.Prune());
    RETURN_IF_ERROR(preparation.WritePrepared());
    preparation.SaveState(PrepareStage::kPruned);
  }
  RETURN_IF_ERROR(preparation.OpenPrepared());
  if (done != PrepareStage::kMeasured) {
    RETURN_IF_ERROR(preparation.MeasurePrepared());
    preparation.SaveState(PrepareStage::kMeasured);
  }
  RETURN_IF_ERROR(preparation.QuantizeCandidates());
  preparation.ScoreGroups();
  RETURN_IF_ERROR(preparation.Report());
  return std::move(preparation).TakeResult();
}

}  // namespace qpruner::engine
