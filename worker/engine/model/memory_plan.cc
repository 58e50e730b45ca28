#include "worker/engine/model/memory_plan.h"

#include <malloc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/machine_memory.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kFloatBytes = 4;
// LibTorch and its libraries, before any work.
constexpr int64_t kProcessBytes = int64_t{64} << 20;
// A chunk of logits in float32 (evaluate/head_scores.h).
constexpr int64_t kLogitsBytes = int64_t{64} << 20;
// Chunks alive together: the model's and a reference's; where they are not read in place, their
// log-probabilities too, and three temporaries between them.
constexpr int64_t kLogitsInPlace = 2, kLogitsElsewhere = 7;
// Smaller batches would leave the matrix products to memory bandwidth.
constexpr int64_t kLeastBatchTokens = 128;

int64_t BlockParameters(const ModelConfig& config, const BlockShape& shape) {
  int64_t count = 2 * config.hidden_size;
  for (const LinearKind kind : kLinearKinds) {
    const std::vector<int64_t> linear = LinearShape(config, shape, kind);
    count += linear[0] * linear[1];
  }
  return count;
}

// What quantizing a block from the second moments of its linears' inputs takes, at most. On the
// host: the moments in float32; three float64 matrices of the widest input while the inverse is
// factored (quantize/gptq.h), which is more than the copies of a weight in the grid of activation
// scaling; and the packed linears of the block, of at most 8 bits. Another device has the moments
// and one product that is added to them.
int64_t MomentBytes(const ModelConfig& config, const BlockShape& shape,
                    const MemoryPlanOptions& options) {
  int64_t moments = 0, widest = 0, weights = 0;
  for (const LinearKind kind : kLinearKinds) {
    const std::vector<int64_t> linear = LinearShape(config, shape, kind);
    weights += linear[0] * linear[1];
    // Shared by query, key and value, and by gate and up.
    if (kind == LinearKind::kKey || kind == LinearKind::kValue || kind == LinearKind::kUp) continue;
    moments += kFloatBytes * linear[1] * linear[1];
    widest = std::max(widest, linear[1]);
  }
  if (!options.on_host) return moments + kFloatBytes * widest * widest;
  constexpr int64_t kDoubleBytes = 8;
  return moments + 3 * kDoubleBytes * widest * widest + options.formats * weights;
}

double Mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

MemoryCosts EstimateMemory(const ModelConfig& config, const MemoryPlanOptions& options) {
  MemoryCosts costs;
  costs.model_bytes = options.element_bytes * ParameterCount(config);
  int64_t largest_block = 0, moments = 0;
  for (const BlockShape& shape : config.blocks) {
    largest_block = std::max(largest_block, BlockParameters(config, shape));
    // What autograd saves, and the gradients that are asked for: residual, norms and their float32
    // copies; query, key, value before and after rotation, repeated, and attention's output; gate,
    // its activation, up, their product.
    const int64_t values = 12 * config.hidden_size +
                           (10 * shape.num_heads + 6 * shape.num_kv_heads) * config.head_dim +
                           8 * shape.intermediate_size;
    costs.position_bytes = std::max(costs.position_bytes, kFloatBytes * values);
    if (options.input_moments) moments = std::max(moments, MomentBytes(config, shape, options));
  }
  costs.block_bytes = options.element_bytes * largest_block;
  const int64_t scoring = std::max<int64_t>(2, options.formats) * kFloatBytes * largest_block;
  costs.fixed_bytes = kProcessBytes +
                      (options.on_host ? kLogitsInPlace : kLogitsElsewhere) * kLogitsBytes +
                      std::max(scoring, moments);
  return costs;
}

std::string MemoryPlan::ToString() const {
  const char* how = resident() ? "weights stay in memory"
                    : prefetch ? "weights are streamed, the next block is loaded ahead"
                               : "weights are streamed, one block at a time";
  return absl::StrFormat("Memory: %s, %d tokens a batch; about %.0f MiB of a limit of %.0f MiB",
                         how, batch_tokens, Mib(expected_bytes), Mib(limit_bytes));
}

absl::StatusOr<MemoryPlan> PlanMemory(const ModelConfig& config, const MemoryPlanOptions& options) {
  const MemoryCosts costs = EstimateMemory(config, options);
  MemoryPlan plan;
  plan.limit_bytes = options.limit_bytes;
  const auto fits = [&](int64_t weight_bytes) {
    plan.expected_bytes =
        weight_bytes + costs.fixed_bytes + plan.batch_tokens * costs.position_bytes;
    return plan.expected_bytes <= plan.limit_bytes;
  };
  const int64_t least = std::max(options.longest_sequence, kLeastBatchTokens);
  plan.batch_tokens = std::max(least, options.most_batch_tokens);
  // A model that is measured has its own head beside the original's.
  const int64_t heads = 2 * options.head_bytes;
  plan.weights = MemoryPlan::Weights::kResident;
  plan.prefetch = true;
  if (fits(costs.model_bytes + options.head_bytes)) return plan;
  plan.weights = MemoryPlan::Weights::kStreamed;
  while (true) {
    plan.prefetch = true;
    if (fits(2 * costs.block_bytes + heads)) return plan;
    plan.prefetch = false;
    if (fits(costs.block_bytes + heads)) return plan;
    if (plan.batch_tokens == least) break;
    plan.batch_tokens = std::max(least, plan.batch_tokens / 2);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("The memory limit is too small for this model: one block with ", least,
                   " tokens needs about ", plan.expected_bytes,
                   " bytes, the limit (limits.device_memory_bytes, ",
                   "or half of the machine's memory) is ", plan.limit_bytes));
}

void AdaptHostAllocator(const MemoryPlan& plan) {
#if defined(M_MMAP_THRESHOLD)
  // glibc raises its threshold to 32 MiB by itself once large blocks are freed. Then activations
  // and gradients live in a heap that only shrinks at its top, where small results pin it: the peak
  // of scoring SmolLM2 doubles. At 1 MiB they come from the kernel and go back to it, for half as
  // much processor time again.
  mallopt(M_MMAP_THRESHOLD, plan.resident() ? 32 << 20 : 1 << 20);
  mallopt(M_TRIM_THRESHOLD, plan.resident() ? 64 << 20 : 2 << 20);
#endif
}

int64_t DefaultHostMemoryLimit() { return MachineMemory() / 2; }

}  // namespace qpruner::engine
