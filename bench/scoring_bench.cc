// Scores the channels of a model, alone in its process, and prints the peak of its anonymous
// memory.
//
//   ninja -C build/release qpruner_scoring_bench
//   build/release/bin/qpruner_scoring_bench --model FOLDER --samples FILE [--method mixed]
//
// FILE: a sample a line, token ids divided by spaces. bench/scoring_peer.py runs this beside a
// plain autograd pass and compares both memory and scores.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "bench/anonymous_peak.h"
#include "bench/token_samples.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_plan.h"
#include "worker/engine/prune/importance.h"

namespace qpruner::engine {
namespace {

void WriteScores(const std::string& path, const std::vector<ChannelScores>& scores) {
  std::vector<TensorToWrite> tensors;
  for (size_t block = 0; block < scores.size(); ++block) {
    for (const LinearKind kind : kLinearKinds) {
      const at::Tensor score = scores[block][kind];
      tensors.push_back(
          {LinearName(static_cast<int64_t>(block), kind), DType::kF64, {score.numel()}, [score] {
             return BytesOf(score);
           }});
    }
  }
  const absl::Status written = WriteSafetensors(path, std::move(tensors), {});
  if (!written.ok()) std::cerr << written << "\n";
}

int Main(int argc, char** argv) {
  std::string model, samples, out;
  ImportanceMethod method = ImportanceMethod::kTaylorMixed;
  int threads = 2;
  int64_t limit_mib = 300;
  CLI::App app("Peak memory of importance scoring");
  app.add_option("--model", model, "Hugging Face model folder")->required();
  app.add_option("--samples", samples, "token ids, a sample a line")->required();
  app.add_option("--scores", out, "safetensors file for the scores");
  app.add_option("--threads", threads)->capture_default_str();
  app.add_option("--limit-mib", limit_mib, "limit that the memory plan keeps to")
      ->capture_default_str();
  const std::map<std::string, ImportanceMethod> methods = {
      {"first", ImportanceMethod::kTaylorFirst},
      {"second", ImportanceMethod::kTaylorSecond},
      {"mixed", ImportanceMethod::kTaylorMixed},
      {"vector", ImportanceMethod::kTaylorVector}};
  app.add_option("--method", method)->transform(CLI::CheckedTransformer(methods));
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(threads);

  AnonymousPeak peak;
  const int64_t start = StatusBytes("RssAnon");
  const auto checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) {
    std::cerr << checkpoint.status() << "\n";
    return 1;
  }
  const std::vector<TokenIds> sequences = ReadTokenSamples(samples);
  size_t longest = 1;
  for (const TokenIds& sequence : sequences) longest = std::max(longest, sequence.size());
  const auto plan = PlanMemory(
      (*checkpoint)->config(),
      {.limit_bytes = limit_mib << 20, .longest_sequence = static_cast<int64_t>(longest)});
  if (!plan.ok()) {
    std::cerr << plan.status() << "\n";
    return 1;
  }
  AdaptHostAllocator(*plan);
  std::printf("%s\n", plan->ToString().c_str());
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<ChannelScores> scores =
      ScoreChannels(*source, MakeBatches(sequences, plan->batch_tokens), method);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const int64_t anonymous = peak.Finish();
  constexpr double kMib = 1 << 20;
  std::printf("start %.1f MiB, peak anonymous %.1f MiB, peak resident %.1f MiB, %.1f s\n",
              static_cast<double>(start) / kMib, static_cast<double>(anonymous) / kMib,
              static_cast<double>(StatusBytes("VmHWM")) / kMib, seconds);
  if (!out.empty()) WriteScores(out, scores);
  return 0;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
