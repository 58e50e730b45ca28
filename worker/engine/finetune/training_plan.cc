#include "worker/engine/finetune/training_plan.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"
#include "worker/engine/model/linear_kind.h"

namespace qpruner::engine {
namespace {

constexpr double kMegabyte = 1e6;
constexpr int64_t kFloatBytes = 4;
// LibTorch and its libraries, before any work.
constexpr int64_t kProcessBytes = int64_t{64} << 20;
// The adapter, the best one so far, gradients, and two moments.
constexpr int64_t kAdapterCopies = 5;

// Elements of a BlockTape a token, an upper bound.
int64_t TapeElements(const ModelConfig& config, const BlockShape& shape, int64_t rank) {
  const int64_t head = std::max(config.head_dim, kNarrowestHead);
  const int64_t attention = shape.num_heads * config.head_dim;
  const int64_t key_value = shape.num_kv_heads * config.head_dim;
  const int64_t hidden = config.hidden_size, mlp = shape.intermediate_size;
  // input, two normed inputs, residual, outputs of o and down; q, k, v as projected; query, key,
  // value and attention as heads, its input to o; gate, up, sigmoid, activation; x A^T; norms.
  return 6 * hidden + (attention + 2 * key_value) + 4 * shape.num_heads * head + attention +
         4 * mlp + 7 * rank + 4 + 3 * shape.num_heads;
}

// Elements of BackwardBuffers a token, with the temporaries of the pass: the gradients of every
// stack's output and input; of query, key, value and attention as heads; of the residual, twice.
int64_t BufferElements(const ModelConfig& config, const BlockShape& shape, int64_t rank) {
  const int64_t head = std::max(config.head_dim, kNarrowestHead);
  const int64_t attention = shape.num_heads * config.head_dim;
  const int64_t key_value = shape.num_kv_heads * config.head_dim;
  const int64_t hidden = config.hidden_size, mlp = shape.intermediate_size;
  const int64_t wrote = (attention + 2 * key_value) + 2 * hidden + 2 * mlp + 7 * rank;
  const int64_t read = 2 * hidden + attention + mlp;
  return wrote + read + 4 * shape.num_heads * head + 2 * hidden;
}

// What a plan counts that is the same for all of them, and what grows with the tokens at a time.
struct TrainingCosts {
  int64_t weights = 0;  // All that are dequantized.
  int64_t tables = 0;   // Embedding and head.
  int64_t largest_block = 0;
  int64_t fixed = 0;           // Of other_bytes.
  int64_t token_tapes = 0;     // Of all blocks.
  int64_t largest_tape = 0;    // A token, of one block.
  int64_t largest_buffer = 0;  // A token.
  int64_t waiting = 0;         // Block inputs on the way back, of a whole step.
};

TrainingCosts EstimateTraining(const ModelConfig& config, const TrainingPlanOptions& options) {
  const auto element = static_cast<int64_t>(c10::elementSize(options.dtype));
  TrainingCosts costs;
  const int64_t table = config.vocab_size * config.hidden_size;
  const int64_t tables = table * (config.tie_word_embeddings ? 1 : 2);
  int64_t weights = tables, adapter = 0;
  for (const BlockShape& shape : config.blocks) {
    int64_t block = 2 * config.hidden_size;
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> linear = LinearShape(config, shape, kind);
      block += (linear[0] + options.rank) * linear[1];
      adapter += options.rank * (linear[0] + linear[1]);
    }
    weights += block;
    const int64_t tape = TapeElements(config, shape, options.rank) * element;
    costs.token_tapes += tape;
    costs.largest_tape = std::max(costs.largest_tape, tape);
    costs.largest_block = std::max(costs.largest_block, block * element);
    costs.largest_buffer =
        std::max(costs.largest_buffer, BufferElements(config, shape, options.rank) * element);
  }
  costs.weights = weights * element;
  costs.tables = tables * element;
  costs.fixed = kAdapterCopies * kFloatBytes * adapter +
                // Embedding and head rounded to what is stored, where that is another type.
                tables * (options.dtype == at::kFloat ? 2 : kFloatBytes) +
                options.objective.fixed_bytes + options.base_bytes + kProcessBytes;
  if (options.on_host) {
    costs.waiting = std::min(HostStore::kDefaultResidentBytes,
                             (config.num_blocks() + 2) * options.batch_size *
                                 options.sequence_length * config.hidden_size * element);
  }
  return costs;
}

}  // namespace

std::string TrainingPlan::Describe() const {
  return absl::StrFormat(
      "%s, %d %s at a time (%.1f MB of weights and %.1f MB of activations; about %.1f MB of a "
      "limit of %.1f MB)",
      kind == Kind::kResident ? "resident" : "streamed, one block at a time", micro_batch_size,
      micro_batch_size == 1 ? "sequence" : "sequences",
      static_cast<double>(weight_bytes) / kMegabyte,
      static_cast<double>(activation_bytes) / kMegabyte,
      static_cast<double>(expected_bytes) / kMegabyte,
      static_cast<double>(memory_limit_bytes) / kMegabyte);
}

absl::StatusOr<TrainingPlan> PlanTraining(const ModelConfig& config,
                                          const TrainingPlanOptions& options) {
  const TrainingCosts costs = EstimateTraining(config, options);
  TrainingPlan plan;
  plan.memory_limit_bytes = options.memory_limit_bytes;
  plan.weight_bytes = costs.weights;
  plan.micro_batch_size =
      std::max<int64_t>(1, std::min(options.micro_batch_size, options.batch_size));
  plan.held_out_tokens = options.held_out_tokens;
  while (true) {
    const int64_t tokens = plan.micro_batch_size * options.sequence_length;
    plan.activation_bytes = costs.token_tapes * tokens;
    plan.other_bytes = costs.fixed +
                       (costs.largest_buffer + options.objective.token_bytes) * tokens +
                       costs.largest_tape * plan.held_out_tokens;
    plan.kind = TrainingPlan::Kind::kResident;
    plan.expected_bytes = plan.weight_bytes + plan.activation_bytes + plan.other_bytes;
    if (plan.expected_bytes <= options.memory_limit_bytes) return plan;
    plan.kind = TrainingPlan::Kind::kStreamed;
    // A block as it is fetched, dequantized and stacked.
    plan.expected_bytes = costs.tables + 3 * costs.largest_block + costs.largest_tape * tokens +
                          costs.waiting + plan.other_bytes;
    if (plan.expected_bytes <= options.memory_limit_bytes) return plan;
    if (plan.micro_batch_size == 1 && plan.held_out_tokens <= options.held_out_length) break;
    plan.micro_batch_size = std::max<int64_t>(1, plan.micro_batch_size / 2);
    plan.held_out_tokens =
        std::max(std::min(options.held_out_length, plan.held_out_tokens), plan.held_out_tokens / 2);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "The memory limit is too small to fine-tune this model: one block with one sequence of ",
      options.sequence_length, " tokens (fine_tune.sequence_length) needs about ",
      plan.expected_bytes, " bytes, the limit (limits.device_memory_bytes, or half of the ",
      "machine's memory) is ", plan.memory_limit_bytes));
}

}  // namespace qpruner::engine
