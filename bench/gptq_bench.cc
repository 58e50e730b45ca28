// Quantizes every linear of a model to integers with GPTQ, or to nearest, and writes the
// dequantized model as a Hugging Face folder. Prints one line of JSON: seconds and peak memory.
//
//   ninja -C build/release qpruner_gptq_bench
//   build/release/bin/qpruner_gptq_bench --model FOLDER --samples FILE --output FOLDER --database
//   FOLDER
//
// FILE: a sample a line, token ids divided by spaces. bench/gptq_peer.py runs this beside
// llm-compressor on the same samples and measures both results with transformers.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "bench/anonymous_peak.h"
#include "bench/token_samples.h"
#include "worker/engine/calibrate/activation_scaling.h"
#include "worker/engine/calibrate/weight_database.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {
namespace {

struct Arguments {
  std::string model, samples, output, database;
  int bits = 4;
  int64_t group_size = 64;
  int threads = 2;
  bool activation_scaling = false;
};

absl::Status Run(const Arguments& arguments) {
  const Format format = Format::IntegerGroup(arguments.bits, arguments.group_size);
  ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(arguments.model));
  const auto source = MakeCheckpointSource(checkpoint, at::kCPU, at::kFloat);
  const std::vector<TokenBatch> batches = MakeBatches(ReadTokenSamples(arguments.samples));

  AnonymousPeak peak;
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<WeightSource> scaled;
  if (arguments.activation_scaling) {
    scaled = std::make_unique<ScaledSource>(*source,
                                            FindActivationScaling(*source, batches, format).blocks);
  }
  WeightSource& model = scaled ? *scaled : *source;
  std::unique_ptr<WeightDatabase> database;
  if (!arguments.database.empty()) {
    RETURN_IF_ERROR(WriteWeightDatabase(arguments.database, model, batches, {format}, {}));
    ASSIGN_OR_RETURN(database, WeightDatabase::Open(arguments.database, model.config(), {format}));
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  ASSIGN_OR_RETURN(const auto quantized,
                   QuantizedSource::Create(model, UniformAssignment(model.config(), format),
                                           QuantizedSource::Keep::kNothing, database.get()));
  RETURN_IF_ERROR(WriteHfModel(arguments.output, *quantized,
                               {.dtype = at::kFloat, .tokenizer_from = arguments.model})
                      .status());
  const nlohmann::json line = {{"format", FormatName(format)},
                               {"seconds", seconds.count()},
                               {"peak_anonymous_bytes", peak.Finish()}};
  std::cout << line << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Arguments a;
  CLI::App app("Time, memory and result of GPTQ, of activation-aware scaling (AWQ), or of both");
  app.add_option("--model", a.model, "Hugging Face model folder")->required();
  app.add_option("--samples", a.samples, "token ids, a sample a line")->required();
  app.add_option("--output", a.output, "folder of the dequantized model, float32")->required();
  app.add_option("--database", a.database,
                 "folder of GPTQ's packed weights; without it: to nearest");
  app.add_flag("--activation-scaling", a.activation_scaling, "AWQ: scales channels first");
  app.add_option("--bits", a.bits)->capture_default_str();
  app.add_option("--group-size", a.group_size)->capture_default_str();
  app.add_option("--threads", a.threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(a.threads);
  at::NoGradGuard no_grad;
  const absl::Status status = Run(a);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
