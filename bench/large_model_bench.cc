// A synthetic model of 1.5 billion parameters through a whole job: scored, pruned, quantized and
// exported, as the engine does it, with the peak of anonymous memory of every task.
//
//   ninja -C build/release qpruner_large_model_bench
//   build/release/bin/qpruner_large_model_bench --folder /tmp/large [--limit-mib 2048]
//
// Needs about three times the model's 3 GB on disk. The model is written once and found again.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/durable_file.h"
#include "bench/anonymous_peak.h"
#include "bench/synthetic_model.h"
#include "worker/engine/model/memory_plan.h"
#include "worker/engine/tasks/task_runner.h"

namespace qpruner::engine {
namespace {

using internal::v1::EngineRequest;
using internal::v1::TaskResult;
using internal::v1::TaskSpec;

constexpr double kMib = 1 << 20;

class PrintedProgress final : public ProgressReporter {
 public:
  void Report(double, const std::string&) override {}
  void Log(const std::string& text, bool) override { std::printf("  %s\n", text.c_str()); }
};

// As few samples as there can be: it is memory that is measured.
TaskSpec Task(const std::string& model, int64_t limit_bytes) {
  TaskSpec task;
  auto& spec = *task.mutable_spec();
  spec.mutable_model()->set_uri("file://" + model);
  spec.mutable_calibration()->set_sample_count(2);
  spec.mutable_calibration()->set_sequence_length(32);
  spec.mutable_pruning()->set_ratio(0.25);
  spec.mutable_evaluation()->set_sequence_length(128);
  spec.mutable_evaluation()->set_max_selection_tokens(256);
  spec.mutable_evaluation()->set_max_test_tokens(256);
  spec.mutable_search()->set_granularity(v1::Search::BLOCK);
  spec.mutable_search()->add_candidate_bits(4);
  spec.mutable_search()->add_candidate_bits(16);
  spec.mutable_fine_tune()->set_steps(0);
  spec.mutable_limits()->set_device_memory_bytes(limit_bytes);
  return task;
}

// Runs one task in `folder`/name and prints what it took.
absl::StatusOr<TaskResult> Run(TaskRunner& runner, const TaskSpec& task, const std::string& folder,
                               const std::string& name) {
  EngineRequest request;
  *request.mutable_task() = task;
  request.set_input_dir(folder + "/prepare");
  request.set_output_dir(folder + "/" + name);
  request.set_builtin_dir("data");
  std::filesystem::remove_all(request.output_dir());
  if (absl::Status made = CreateFolders(request.output_dir()); !made.ok()) return made;
  PrintedProgress progress;
  AnonymousPeak peak;
  const auto begin = std::chrono::steady_clock::now();
  auto result = runner.Run(request, progress);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%-9s peak anonymous %7.1f MiB, %6.1f s\n", name.c_str(),
              static_cast<double>(peak.Finish()) / kMib, seconds);
  std::fflush(stdout);
  return result;
}

absl::Status Work(const std::string& folder, int64_t limit_bytes, const SyntheticModel& shape) {
  const std::string model = folder + "/model";
  if (!std::filesystem::exists(model + "/config.json")) {
    AnonymousPeak peak;
    if (absl::Status written = WriteSyntheticModel(model, shape, "data/models/stories260k");
        !written.ok()) {
      return written;
    }
    std::printf("%-9s peak anonymous %7.1f MiB\n", "write",
                static_cast<double>(peak.Finish()) / kMib);
  }
  const auto block = 2 * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.hidden +
                     2 * 3 * shape.hidden * shape.intermediate;
  std::printf("a block: %.1f MiB as stored (bfloat16), %.1f MiB in float32\n",
              static_cast<double>(block) / kMib, 2 * static_cast<double>(block) / kMib);
  TaskRunner runner(at::kCPU, RealClock());
  TaskSpec task = Task(model, limit_bytes);
  task.mutable_prepare();
  const auto prepared = Run(runner, task, folder, "prepare");
  if (!prepared.ok()) return prepared.status();
  std::printf("  %lld of %lld parameters left\n",
              static_cast<long long>(prepared->prepare().pruned_test().parameter_count()),
              static_cast<long long>(prepared->prepare().original_test().parameter_count()));
  const auto assign = [&](TaskSpec& of, auto& work) {
    *of.mutable_inputs() = prepared->outputs();
    for (const auto& group : prepared->prepare().groups()) {
      auto& precision = *work.add_precisions();
      precision.set_group(group.name());
      precision.set_bits(4);
    }
  };
  TaskSpec trial = Task(model, limit_bytes);
  assign(trial, *trial.mutable_trial());
  const auto tried = Run(runner, trial, folder, "trial");
  if (!tried.ok()) return tried.status();
  TaskSpec finalize = Task(model, limit_bytes);
  assign(finalize, *finalize.mutable_finalize());
  return Run(runner, finalize, folder, "finalize").status();
}

int Main(int argc, char** argv) {
  std::string folder;
  int64_t limit_mib = 2048;
  int threads = 2;
  SyntheticModel shape;
  CLI::App app("A large model through a whole job within a memory limit");
  app.add_option("--folder", folder, "for the model and the outputs")->required();
  app.add_option("--limit-mib", limit_mib, "limits.device_memory_bytes, in MiB")
      ->capture_default_str();
  app.add_option("--blocks", shape.blocks)->capture_default_str();
  app.add_option("--threads", threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(threads);
  const absl::Status status = Work(folder, limit_mib << 20, shape);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
