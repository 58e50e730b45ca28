// Whether a model's weights stay on the device or are streamed through it: decided before any work,
// from the model's sizes and a limit on memory. No LibTorch here.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_MEMORY_PLAN_H_
#define QPRUNER_WORKER_ENGINE_MODEL_MEMORY_PLAN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

struct MemoryPlanOptions {
  int64_t limit_bytes = 0;    // DefaultHostMemoryLimit, or what the job says.
  int64_t element_bytes = 4;  // Of the type that is computed in.
  int64_t longest_sequence = 1;
  int64_t most_batch_tokens = 4096;  // More is no faster.
  // Whether the device's memory is the host's: there a mapped file needs none, and logits are read
  // in place.
  bool on_host = true;
  // The head's, where it cannot be used as it lies in the file.
  int64_t head_bytes = 0;
  // Formats that the weights of a block are compared in by gradients (score/gradient_score.h).
  int64_t formats = 2;
  // Second moments of the linears' inputs are taken and used: GPTQ, activation scaling.
  bool input_moments = false;
};

// What a walk over the blocks keeps on its device, as estimates in bytes: of activations those of
// the backward walk of importance scoring, which has the most; beside them what the most demanding
// of the task's walks adds.
struct MemoryCosts {
  int64_t model_bytes = 0;     // All weights, in the type that is computed in.
  int64_t block_bytes = 0;     // The largest block's.
  int64_t position_bytes = 0;  // Activations and their gradients in one block, for one token.
  // Beside weights and activations: the process itself, a chunk of logits, and the larger of what
  // scoring holds for a block (float32: two sums of second-order importance, or what each format
  // changes) and what quantization from input moments does.
  int64_t fixed_bytes = 0;
};

// Of `options`, limit and lengths are not looked at.
MemoryCosts EstimateMemory(const ModelConfig& config, const MemoryPlanOptions& options);

struct MemoryPlan {
  enum class Weights {
    kResident,  // All of them are loaded once and stay.
    kStreamed,  // One block at a time, two with prefetch.
  };
  Weights weights = Weights::kStreamed;
  // The next block is loaded on a thread of its own while one is in work. With kResident, of walks
  // over what is not loaded, or not yet: there is room for more than two blocks.
  bool prefetch = false;
  // Positions in work at a time, padding included; a longer sequence is a batch of its own.
  int64_t batch_tokens = 0;
  int64_t limit_bytes = 0;
  int64_t expected_bytes = 0;  // Under this plan; at most limit_bytes.

  bool resident() const { return weights == Weights::kResident; }
  // One line for people.
  std::string ToString() const;
};

// Weights stay if they fit beside full batches, for then nothing is loaded twice. Else they are
// streamed: with prefetch if that fits, then with smaller batches.
// INVALID_ARGUMENT: not even one block with the longest sequence fits; names the smallest limit.
absl::StatusOr<MemoryPlan> PlanMemory(const ModelConfig& config, const MemoryPlanOptions& options);

// Has the process's allocator give freed memory back to the kernel where weights are streamed, and
// keep it for the next use where they stay. Costs nothing on other devices than the CPU.
void AdaptHostAllocator(const MemoryPlan& plan);

// Half of what this process may count on (base/machine_memory.h).
int64_t DefaultHostMemoryLimit();

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_MEMORY_PLAN_H_
