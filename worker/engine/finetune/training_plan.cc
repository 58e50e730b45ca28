#include "worker/engine/finetune/training_plan.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/linear_kind.h"

namespace qpruner::engine {
namespace {

constexpr double kMegabyte = 1e6;

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

}  // namespace

std::string TrainingPlan::Describe() const {
  return absl::StrFormat("%s (%.1f MB of weights and %.1f MB of activations; limit %.1f MB)",
                         kind == Kind::kResident ? "resident" : "streamed, one block at a time",
                         static_cast<double>(weight_bytes) / kMegabyte,
                         static_cast<double>(activation_bytes) / kMegabyte,
                         static_cast<double>(memory_limit_bytes) / kMegabyte);
}

TrainingPlan PlanTraining(const ModelConfig& config, int64_t rank, int64_t tokens_a_micro_batch,
                          at::ScalarType dtype, int64_t memory_limit_bytes) {
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  TrainingPlan plan;
  plan.memory_limit_bytes = memory_limit_bytes;
  int64_t weights = config.vocab_size * config.hidden_size * (config.tie_word_embeddings ? 1 : 2);
  for (const BlockShape& shape : config.blocks) {
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> linear = LinearShape(config, shape, kind);
      weights += (linear[0] + rank) * linear[1];
    }
    weights += 2 * config.hidden_size;
    plan.activation_bytes += TapeElements(config, shape, rank) * tokens_a_micro_batch * element;
  }
  plan.weight_bytes = weights * element;
  if (plan.weight_bytes + plan.activation_bytes <= memory_limit_bytes) {
    plan.kind = TrainingPlan::Kind::kResident;
  }
  return plan;
}

}  // namespace qpruner::engine
