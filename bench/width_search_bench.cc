// Searched widths against one ratio for heads and channels, at no more parameters, on text that the
// search did not see.
//
//   ninja -C build/release qpruner_width_search_bench
//   build/release/bin/qpruner_width_search_bench
//   build/release/bin/qpruner_width_search_bench --model FOLDER --text FILE --separator ''
//
// Importance and search use the calibration share, the last column the test share.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/prune/width_search.h"
#include "worker/engine/texts/dataset.h"

namespace qpruner::engine {
namespace {

struct Options {
  std::string model = "data/models/stories260k";
  std::string text = "data/corpus/tinystories.txt";
  std::string separator = "<|endoftext|>";
  int64_t samples = 32;
  int64_t length = 128;
  int64_t test_tokens = 16384;
  int64_t alignment = 32;
  std::vector<double> ratios = {0.1, 0.2, 0.3, 0.4};
  uint64_t seed = 42;
};

absl::Status Work(const Options& options) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  const auto source = MakeCheckpointSource(checkpoint, at::kCPU, at::kFloat);
  const ModelConfig& config = source->config();
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(options.model, config.vocab_size));
  ASSIGN_OR_RETURN(const auto dataset, Dataset::Open({.path = options.text,
                                                      .document_separator = options.separator,
                                                      .window_length = 512},
                                                     *tokenizer));
  ASSIGN_OR_RETURN(const auto samples, dataset->Samples(Share::kCalibration, options.samples,
                                                        options.length, options.seed));
  ASSIGN_OR_RETURN(const auto test,
                   dataset->Documents(Share::kTest, 512, options.test_tokens, 256));
  const std::vector<TokenBatch> calibration = MakeBatches(samples), held_out = MakeBatches(test);
  const std::vector<BlockImportance> importance = ScoreGroups(*source, calibration, {});
  const ReferenceStates original{ForwardHidden(*source, BatchIds(held_out)), source->Head()};

  std::printf(
      "layout     removed  plan                            parameters  calibration KL  test KL\n");
  for (const PruningLayout layout : {PruningLayout::kUniform, PruningLayout::kPerLayer}) {
    for (const double ratio : options.ratios) {
      const PruningOptions pruning{.layout = layout, .alignment = options.alignment};
      const auto outcome = SearchWidths(*source, calibration, importance, ratio, pruning);
      if (!outcome.ok()) {
        std::printf("%s\n", std::string(outcome.status().message()).c_str());
        continue;
      }
      for (size_t i = 0; i < outcome->candidates.size(); ++i) {
        const WidthCandidate& candidate = outcome->candidates[i];
        ASSIGN_OR_RETURN(PruningPlan plan,
                         KeepHighest(FullPlan(config), importance, candidate.counts));
        PrunedSource pruned(*source, std::move(plan));
        std::printf("%-10s %6.0f %%  %-30s %c %10lld  %14.4f  %7.4f\n",
                    layout == PruningLayout::kUniform ? "UNIFORM" : "PER_LAYER", 100 * ratio,
                    candidate.origin.c_str(), i == outcome->best ? '*' : ' ',
                    static_cast<long long>(candidate.parameter_count), candidate.divergence,
                    EvaluateModel(pruned, held_out, &original).mean_kl());
        std::fflush(stdout);
      }
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  int threads = 2;
  CLI::App app("Searched widths against one ratio");
  app.add_option("--model", options.model)->capture_default_str();
  app.add_option("--text", options.text)->capture_default_str();
  app.add_option("--separator", options.separator)->capture_default_str();
  app.add_option("--samples", options.samples)->capture_default_str();
  app.add_option("--length", options.length)->capture_default_str();
  app.add_option("--test-tokens", options.test_tokens)->capture_default_str();
  app.add_option("--alignment", options.alignment)->capture_default_str();
  app.add_option("--ratios", options.ratios)->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_option("--threads", threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(threads);
  const absl::Status status = Work(options);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
