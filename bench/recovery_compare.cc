// Compares ways of recovery at equal steps, with the control that a reader needs: fine-tuning on
// text like the test text lowers perplexity by adaptation alone, so the unpruned model is
// fine-tuned alike, KL to the original is shown beside perplexity, and so is a text of another
// domain.
//
//   ninja -C build/release qpruner_recovery_compare
//   build/release/bin/qpruner_recovery_compare data/models/stories260k --text
//   data/corpus/tinystories.txt
//     --other-text FILE [--ratio 0.25] [--steps 200] [--format nf4]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/distillation.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/prune/pruning_plan.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/texts/dataset.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

struct Arguments {
  std::string model;
  std::string text;
  std::string other_text;
  std::string format = "nf4";
  double ratio = 0.25;
  double learning_rate = 1e-3;
  int64_t steps = 200;
  int64_t batch = 8;
  int64_t length = 256;
  int64_t rank = 8;
  int64_t tokens = 16384;
  int threads = 0;
};

// A text with the original model's states over it.
struct Probe {
  std::vector<TokenBatch> batches;
  ReferenceStates original;
};

absl::StatusOr<std::unique_ptr<Dataset>> OpenText(const std::string& path,
                                                  const Tokenizer& tokenizer, int64_t length) {
  TextSource source{.path = path, .window_length = length};
  absl::StatusOr<std::unique_ptr<Dataset>> documents = Dataset::Open(source, tokenizer);
  if (documents.ok()) return documents;
  source.document_separator.clear();  // One text without documents.
  return Dataset::Open(source, tokenizer);
}

absl::StatusOr<Probe> MakeProbe(Dataset& dataset, Share share, const Arguments& arguments,
                                WeightSource& original) {
  ASSIGN_OR_RETURN(const std::vector<TokenIds> sequences,
                   dataset.Documents(share, arguments.length, arguments.tokens));
  Probe probe{.batches = MakeBatches(sequences)};
  probe.original = {ForwardHidden(original, BatchIds(probe.batches)), original.Head()};
  return probe;
}

class Comparison {
 public:
  explicit Comparison(const Arguments& arguments) : arguments_(arguments) {}

  absl::Status Open() {
    ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(arguments_.model));
    original_ = MakeCheckpointSource(checkpoint, at::kCPU, at::kFloat);
    const ModelConfig& config = original_->config();
    arguments_.length = std::min(arguments_.length, config.max_position_embeddings);
    ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(arguments_.model, config.vocab_size));
    ASSIGN_OR_RETURN(const auto text, OpenText(arguments_.text, *tokenizer, arguments_.length));
    ASSIGN_OR_RETURN(const auto other,
                     OpenText(arguments_.other_text, *tokenizer, arguments_.length));
    ASSIGN_OR_RETURN(selection_, MakeProbe(*text, Share::kSelection, arguments_, *original_));
    ASSIGN_OR_RETURN(test_, MakeProbe(*text, Share::kTest, arguments_, *original_));
    ASSIGN_OR_RETURN(other_, MakeProbe(*other, Share::kTest, arguments_, *original_));
    ASSIGN_OR_RETURN(std::vector<TokenIds> documents,
                     text->Documents(Share::kFineTune, 1 << 20,
                                     arguments_.steps * arguments_.batch * arguments_.length));
    std::vector<TrainingSequence> sequences;
    for (TokenIds& ids : documents) sequences.push_back({.ids = std::move(ids)});
    training_ = PackDocuments(sequences, arguments_.length, 42);

    ASSIGN_OR_RETURN(const std::vector<TokenIds> calibration,
                     text->Samples(Share::kCalibration, 32, 128, 42));
    PruningOptions pruning{.ratio = arguments_.ratio};
    RETURN_IF_ERROR(CheckPruning(config, pruning));
    ASSIGN_OR_RETURN(
        PruningPlan plan,
        MakePruningPlan(config, ScoreGroups(*original_, MakeBatches(calibration), {}), pruning));
    pruned_ = std::make_unique<PrunedSource>(*original_, std::move(plan));
    ASSIGN_OR_RETURN(format_, ParseFormatName(arguments_.format));
    return absl::OkStatus();
  }

  absl::Status Run() {
    std::cout << absl::StreamFormat("%-44s %10s %8s %12s %8s\n", "", "perplexity", "KL",
                                    "other perpl.", "KL");
    Print("original", *original_);
    Print("pruned", *pruned_);
    const auto row = [&](const char* label, WeightSource& base, Format format,
                         std::optional<AdapterInit> init,
                         std::optional<DistillationOptions> distillation = {}) {
      return Row(label, base, format, init, distillation);
    };
    RETURN_IF_ERROR(row("pruned, quantized", *pruned_, format_, std::nullopt));
    RETURN_IF_ERROR(row("  + LoRA", *pruned_, format_, AdapterInit::kZero));
    RETURN_IF_ERROR(row("  + LoftQ", *pruned_, format_, AdapterInit::kLoftq));
    RETURN_IF_ERROR(row("  + LoftQ, distillation 0.5", *pruned_, format_, AdapterInit::kLoftq,
                        DistillationOptions{.weight = 0.5}));
    RETURN_IF_ERROR(row("  + LoftQ, distillation 1", *pruned_, format_, AdapterInit::kLoftq,
                        DistillationOptions{.weight = 1}));
    RETURN_IF_ERROR(row("  + LoftQ, distillation 1, temperature 2", *pruned_, format_,
                        AdapterInit::kLoftq, DistillationOptions{.weight = 1, .temperature = 2}));
    return row("control: original + LoRA", *original_, Format::Bfloat16(), AdapterInit::kZero);
  }

 private:
  void Print(const std::string& label, WeightSource& model) {
    const TokenMetrics test = EvaluateModel(model, test_.batches, &test_.original);
    const TokenMetrics other = EvaluateModel(model, other_.batches, &other_.original);
    std::cout << absl::StreamFormat("%-44s %10.4f %8.4f %12.4f %8.4f\n", label, test.perplexity(),
                                    test.mean_kl(), other.perplexity(), other.mean_kl())
              << std::flush;
  }

  absl::Status Row(const std::string& label, WeightSource& model, const Format& format,
                   std::optional<AdapterInit> init,
                   const std::optional<DistillationOptions>& distillation) {
    ASSIGN_OR_RETURN(const auto base,
                     QuantizedSource::Create(model, UniformAssignment(model.config(), format)));
    if (!init) {
      Print(label, *base);
      return absl::OkStatus();
    }
    AdapterStart start = StartAdapter(
        model, *base, *init, 1,
        {.rank = arguments_.rank, .alpha = 2.0 * static_cast<double>(arguments_.rank)});
    TrainingState state = StartTraining(std::move(start.adapter));
    std::optional<DistillationObjective> objective;
    if (distillation) {
      objective.emplace(*original_, model.config().vocab_size, *distillation);
    }
    TrainerOptions options{.batch_size = arguments_.batch,
                           .micro_batch_size = arguments_.batch,
                           .sequence_length = arguments_.length,
                           .learning_rate = {.peak = arguments_.learning_rate,
                                             .warmup_steps = arguments_.steps / 10,
                                             .steps = arguments_.steps}};
    RETURN_IF_ERROR(Train(*base, training_, selection_.batches, options, state, {},
                          objective ? &*objective : nullptr));
    MergedSource merged(*base, state.best);
    Print(label, merged);
    return absl::OkStatus();
  }

  Arguments arguments_;
  std::unique_ptr<WeightSource> original_, pruned_;
  Format format_;
  Probe selection_, test_, other_;
  std::vector<TrainingSequence> training_;
};

int Main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Perplexity and KL to the original (nats a token) after ways of recovery.");
  app.add_option("model", arguments.model, "Folder of the model")->required();
  app.add_option("--text", arguments.text, "Text to train and test on")->required();
  app.add_option("--other-text", arguments.other_text, "Text of another domain")->required();
  app.add_option("--ratio", arguments.ratio, "Pruned share")->capture_default_str();
  app.add_option("--format", arguments.format, "")->capture_default_str();
  app.add_option("--steps", arguments.steps, "")->capture_default_str();
  app.add_option("--learning-rate", arguments.learning_rate, "")->capture_default_str();
  app.add_option("--batch", arguments.batch, "Sequences a step")->capture_default_str();
  app.add_option("--length", arguments.length, "Tokens a sequence")->capture_default_str();
  app.add_option("--rank", arguments.rank, "")->capture_default_str();
  app.add_option("--tokens", arguments.tokens, "Of each measured text")->capture_default_str();
  app.add_option("--threads", arguments.threads, "0: LibTorch's default");
  CLI11_PARSE(app, argc, argv);
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
  Comparison comparison(arguments);
  absl::Status status = comparison.Open();
  if (status.ok()) status = comparison.Run();
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
