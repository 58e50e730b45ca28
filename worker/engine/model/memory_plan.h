// Whether a model's weights stay on the device or are streamed through it: decided before any work,
// from the model's sizes and a limit on memory. No LibTorch here.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_MEMORY_PLAN_H_
#define QPRUNER_WORKER_ENGINE_MODEL_MEMORY_PLAN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

// What a walk over the blocks keeps on its device. The costs are estimates, in bytes, of the
// backward walk of importance scoring, which takes the most.
struct MemoryCosts {
  int64_t model_bytes = 0;     // All weights, in the type that is computed in.
  int64_t block_bytes = 0;     // The largest block's.
  int64_t position_bytes = 0;  // Activations and their gradients in one block, for one token.
  // Beside weights and activations: the process itself, a chunk of logits, and what second-order
  // scoring adds up for one block (both in float32).
  int64_t fixed_bytes = 0;
};

// `element_bytes`: of the type that is computed in.
MemoryCosts EstimateMemory(const ModelConfig& config, int64_t element_bytes);

struct MemoryPlan {
  enum class Weights {
    kResident,  // All of them are loaded once and stay.
    kStreamed,  // One block at a time, two with prefetch.
  };
  Weights weights = Weights::kStreamed;
  // Streamed only: the next block is loaded on a thread of its own while one is in work.
  bool prefetch = false;
  // Positions in work at a time, padding included; a longer sequence is a batch of its own.
  int64_t batch_tokens = 0;
  int64_t limit_bytes = 0;
  int64_t expected_bytes = 0;  // Under this plan; at most limit_bytes.

  bool resident() const { return weights == Weights::kResident; }
  // One line for people.
  std::string ToString() const;
};

struct MemoryPlanOptions {
  int64_t limit_bytes = 0;  // DefaultHostMemoryLimit, or what the job says.
  int64_t element_bytes = 4;
  int64_t longest_sequence = 1;
  int64_t most_batch_tokens = 4096;  // More is no faster.
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
