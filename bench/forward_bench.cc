// Forward tokens per second of the engine over windows of a text, with perplexity. Prints one line
// of JSON. bench/forward_compare.py runs it beside other software.
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/durable_file.h"
#include "nlohmann/json.hpp"
#include "worker/engine/evaluate/head_scores.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// As ForwardHidden, by plain operators throughout.
std::vector<at::Tensor> PlainForward(WeightSource& source, const std::vector<at::Tensor>& batches) {
  const ModelConfig& config = source.config();
  std::vector<at::Tensor> hidden;
  for (const at::Tensor& ids : batches) hidden.push_back(Embed(source, ids));
  const RotaryTables rotary =
      MakeRotaryTables(config, batches.front().size(1), source.device(), source.dtype());
  for (int64_t i = 0; i < config.num_blocks(); ++i) {
    const BlockWeights weights = source.Block(i);
    for (at::Tensor& x : hidden) {
      x = BlockForward(config, config.blocks[static_cast<size_t>(i)], weights, rotary, x);
    }
  }
  for (at::Tensor& x : hidden) x = RmsNorm(x, source.FinalNorm(), config.rms_norm_eps);
  return hidden;
}

int Main(int argc, char** argv) {
  std::string model, text_path, dtype = "bfloat16";
  int64_t context = 512, windows = 16, repeats = 1;
  int threads = 2;
  bool plain = false;
  CLI::App app("Forward pass over windows of a text");
  app.add_option("--model", model, "Hugging Face folder")->required();
  app.add_option("--text", text_path)->required();
  app.add_option("--context", context, "tokens a window");
  app.add_option("--windows", windows);
  app.add_option("--repeats", repeats, "the best is reported");
  app.add_option("--threads", threads);
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"bfloat16", "float32"}));
  app.add_flag("--plain", plain, "by LibTorch's plain operators");
  CLI11_PARSE(app, argc, argv);

  at::NoGradGuard no_grad;
  at::set_num_threads(threads);
  const auto checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) return std::cerr << checkpoint.status().message() << "\n", 1;
  const auto tokenizer = Tokenizer::Open(model, (*checkpoint)->config().vocab_size);
  if (!tokenizer.ok()) return std::cerr << tokenizer.status().message() << "\n", 1;
  const auto text = ReadFile(text_path, int64_t{64} << 20);
  if (!text.ok()) return std::cerr << text.status().message() << "\n", 1;
  // Enough of the text for the windows: tokens are not shorter than a byte.
  const auto ids = (*tokenizer)->Encode(*text);
  if (!ids.ok()) return std::cerr << ids.status().message() << "\n", 1;
  if (static_cast<int64_t>(ids->size()) < windows * context) {
    return std::cerr << text_path << " has " << ids->size() << " tokens, fewer than " << windows
                     << " windows of " << context << "\n",
           1;
  }
  std::vector<TokenIds> sequences;
  for (int64_t i = 0; i < windows; ++i) {
    sequences.emplace_back(ids->begin() + i * context, ids->begin() + (i + 1) * context);
  }
  const std::vector<TokenBatch> batches = MakeBatches(sequences);
  const auto streamed =
      MakeCheckpointSource(*checkpoint, at::kCPU, dtype == "bfloat16" ? at::kBFloat16 : at::kFloat);
  MemoryWeightSource source = LoadIntoMemory(*streamed);

  nlohmann::ordered_json result;
  double best = 1e300, best_cpu = 1e300, loss_seconds = 0;
  TokenMetrics metrics;
  for (int64_t i = 0; i < repeats; ++i) {
    const auto now = [] { return std::chrono::steady_clock::now(); };
    const auto start = now();
    const double cpu = CpuSeconds();
    const std::vector<at::Tensor> hidden =
        plain ? PlainForward(source, BatchIds(batches)) : ForwardHidden(source, BatchIds(batches));
    const double middle = CpuSeconds();
    metrics = plain ? Evaluate(batches, hidden, source.Head(), nullptr, true)
                    : Evaluate(batches, hidden, source.Head());
    loss_seconds = CpuSeconds() - middle;
    best_cpu = std::min(best_cpu, CpuSeconds() - cpu);
    best = std::min(best, std::chrono::duration<double>(now() - start).count());
  }
  const auto tokens = static_cast<double>(context * windows);
  result["tokens"] = tokens;
  result["seconds"] = best;
  result["cpu_seconds"] = best_cpu;
  result["head_cpu_seconds"] = loss_seconds;
  result["tokens_per_second"] = tokens / best;
  result["tokens_per_cpu_second"] = tokens / best_cpu;
  result["perplexity"] = metrics.perplexity();
  std::cout << result.dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
