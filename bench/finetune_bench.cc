// Times LoRA training steps of a Hugging Face model folder: the peer of bench/finetune_peer.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "worker/engine/finetune/adam_w.h"
#include "worker/engine/finetune/lora_gradients.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

int Main(int argc, char** argv) {
  std::string folder;
  int threads = 0;
  int64_t steps = 10, batch_size = 8, length = 256, rank = 8;
  double dropout = 0;
  bool bfloat16 = false, streamed = false;
  CLI::App app("Prints milliseconds of each training step, one a line, then the last loss.");
  app.add_option("model", folder, "Folder of the model")->required();
  app.add_option("--threads", threads, "0: LibTorch's default");
  app.add_option("--steps", steps, "")->capture_default_str();
  app.add_option("--batch", batch_size, "Sequences a step")->capture_default_str();
  app.add_option("--length", length, "Tokens a sequence")->capture_default_str();
  app.add_option("--rank", rank, "")->capture_default_str();
  app.add_option("--dropout", dropout, "")->capture_default_str();
  app.add_flag("--streamed", streamed, "One block at a time, as where memory is short");
  app.add_flag("--bfloat16", bfloat16, "Compute in bfloat16");
  CLI11_PARSE(app, argc, argv);
  if (threads > 0) at::set_num_threads(threads);

  auto checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) {
    std::cerr << checkpoint.status().message() << "\n";
    return 1;
  }
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  LoraAdapter adapter = ZeroAdapter(
      source->config(), {.rank = rank, .alpha = 2.0 * static_cast<double>(rank)}, at::kCPU);
  std::vector<at::Tensor> parameters = TrainedParameters(adapter);
  const at::ScalarType dtype = bfloat16 ? at::kBFloat16 : at::kFloat;
  auto plan = PlanTraining(source->config(), {.rank = rank,
                                              .batch_size = batch_size,
                                              .micro_batch_size = batch_size,
                                              .sequence_length = length,
                                              .objective = kCrossEntropyCosts,
                                              .dtype = dtype,
                                              .memory_limit_bytes = int64_t{1} << 50});
  if (!plan.ok()) {
    std::cerr << plan.status().message() << "\n";
    return 1;
  }
  if (streamed) plan->kind = TrainingPlan::Kind::kStreamed;
  LoraGradientComputer computer(*source, *plan, dtype);
  at::Generator generator = at::detail::createCPUGenerator(1);
  TokenBatch tokens;
  tokens.ids =
      at::empty({batch_size, length}, at::kLong).random_(0, source->config().vocab_size, generator);
  tokens.lengths = at::full({batch_size}, length, at::kLong);
  const std::vector<TrainingBatch> batches = {PlainBatch(tokens)};
  AdamWState optimizer;
  double loss = 0;
  for (int64_t step = 0; step < steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    LoraGradients found = computer.Gradients(adapter, batches, CrossEntropyObjective(),
                                             {.probability = dropout, .step = step});
    ClipGradientNorm(found.gradients, 1);
    AdamWStep({}, 1e-4, found.gradients, parameters, optimizer);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    std::cout << took.count() << std::endl;
    loss = found.loss;
  }
  std::cerr << "loss " << loss << "\n";
  return 0;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
