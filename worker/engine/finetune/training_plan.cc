#include "worker/engine/finetune/training_plan.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "worker/engine/model/decoder.h"
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

}  // namespace

std::string TrainingPlan::Describe() const {
  return absl::StrFormat("%s (%.1f MB of weights and %.1f MB of activations; limit %.1f MB)",
                         kind == Kind::kResident ? "resident" : "streamed, one block at a time",
                         static_cast<double>(weight_bytes) / kMegabyte,
                         static_cast<double>(activation_bytes) / kMegabyte,
                         static_cast<double>(memory_limit_bytes) / kMegabyte);
}

TrainingPlan PlanTraining(const ModelConfig& config, const TrainingPlanOptions& options) {
  const auto element = static_cast<int64_t>(c10::elementSize(options.dtype));
  TrainingPlan plan;
  plan.memory_limit_bytes = options.memory_limit_bytes;
  const int64_t table = config.vocab_size * config.hidden_size;
  const int64_t tables = table * (config.tie_word_embeddings ? 1 : 2);
  int64_t weights = tables, largest_block = 0, largest_tape = 0, largest_buffers = 0, adapter = 0;
  for (const BlockShape& shape : config.blocks) {
    int64_t block = 2 * config.hidden_size;
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> linear = LinearShape(config, shape, kind);
      block += (linear[0] + options.rank) * linear[1];
      adapter += options.rank * (linear[0] + linear[1]);
    }
    weights += block;
    const int64_t tape = TapeElements(config, shape, options.rank);
    plan.activation_bytes += tape * options.batch_tokens * element;
    largest_block = std::max(largest_block, block * element);
    largest_tape = std::max(largest_tape, tape * element);
    largest_buffers =
        std::max(largest_buffers, BufferElements(config, shape, options.rank) * element);
  }
  plan.weight_bytes = weights * element;
  plan.other_bytes = largest_buffers * options.batch_tokens +
                     largest_tape * options.held_out_tokens +
                     kAdapterCopies * kFloatBytes * adapter +
                     // Embedding and head rounded to what is stored, where that is another type.
                     tables * (options.dtype == at::kFloat ? 2 : kFloatBytes) +
                     options.objective_bytes + kProcessBytes;
  plan.expected_bytes = plan.weight_bytes + plan.activation_bytes + plan.other_bytes;
  if (plan.expected_bytes <= options.memory_limit_bytes) {
    plan.kind = TrainingPlan::Kind::kResident;
    return plan;
  }
  // A block as it is fetched, dequantized and stacked.
  plan.expected_bytes =
      tables * element + 3 * largest_block + largest_tape * options.batch_tokens + plan.other_bytes;
  return plan;
}

}  // namespace qpruner::engine
