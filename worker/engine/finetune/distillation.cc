#include "worker/engine/finetune/distillation.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"
#include "worker/engine/model/memory_plan.h"

namespace qpruner::engine {
namespace {

// Logits of one model alive at a time: 64 MiB in float32.
constexpr int64_t kLogitsPerChunk = int64_t{1} << 24;
// Tensors of a chunk's size that are alive together in DistillationLoss.
constexpr int64_t kLogitTemporaries = 10;
constexpr int64_t kFloatBytes = 4;

}  // namespace

LossSum DistillationLoss(const at::Tensor& hidden, const at::Tensor& head,
                         const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                         const at::Tensor& targets, const DistillationOptions& options,
                         at::Tensor* gradient) {
  at::NoGradGuard no_grad;
  const double weight = options.weight, temperature = options.temperature;
  const at::ScalarType wide = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor flat_targets = targets.to(hidden.device()).reshape({-1});
  const at::Tensor rows = flat_targets.ne(kNoTarget).nonzero().squeeze(1);
  const at::Tensor labels = flat_targets.index_select(0, rows);
  const at::Tensor flat_hidden = hidden.reshape({-1, hidden.size(-1)});
  const at::Tensor flat_teacher = teacher_hidden.reshape({-1, teacher_hidden.size(-1)});
  at::Tensor flat_gradient;
  if (gradient != nullptr) {
    *gradient = at::zeros_like(hidden, at::MemoryFormat::Contiguous);
    flat_gradient = gradient->view({-1, hidden.size(-1)});
  }

  LossSum loss;
  loss.tokens = rows.size(0);
  const int64_t chunk = std::max<int64_t>(1, kLogitsPerChunk / head.size(0));
  for (int64_t first = 0; first < loss.tokens; first += chunk) {
    const int64_t count = std::min(chunk, loss.tokens - first);
    const at::Tensor chunk_rows = rows.narrow(0, first, count);
    const at::Tensor chunk_labels = labels.narrow(0, first, count).unsqueeze(1);
    const at::Tensor logits =
        at::matmul(flat_hidden.index_select(0, chunk_rows), head.t()).to(wide);
    const at::Tensor teacher_logits =
        HeadLogits(flat_teacher.index_select(0, chunk_rows), teacher_head).to(wide);

    const at::Tensor log_hard = at::log_softmax(logits, -1);
    const at::Tensor log_soft =
        temperature == 1 ? log_hard : at::log_softmax(logits / temperature, -1);
    const at::Tensor log_teacher = at::log_softmax(teacher_logits / temperature, -1);
    const at::Tensor teacher = log_teacher.exp();
    const at::Tensor divergence = teacher * (log_teacher - log_soft);
    loss.nats -= (1 - weight) * log_hard.gather(1, chunk_labels).sum(at::kDouble).item<double>();
    loss.nats += weight * temperature * temperature * divergence.sum(at::kDouble).item<double>();
    if (gradient == nullptr) continue;
    // d CE / d logits = p - onehot; d T^2 KL / d logits = T (p_T - teacher).
    at::Tensor d_logits = log_hard.exp() * (1 - weight);
    d_logits.scatter_add_(1, chunk_labels,
                          at::full_like(chunk_labels, -(1 - weight), d_logits.options()));
    d_logits.add_(log_soft.exp() - teacher, weight * temperature);
    flat_gradient.index_copy_(0, chunk_rows, at::matmul(d_logits.to(head.dtype()), head));
  }
  return loss;
}

ObjectiveCosts DistillationCosts(const ModelConfig& teacher, at::ScalarType teacher_dtype,
                                 at::Device device, int64_t step_tokens) {
  const auto element = static_cast<int64_t>(c10::elementSize(teacher_dtype));
  const MemoryCosts walk = EstimateMemory(teacher, {.element_bytes = element});
  const int64_t chunk = std::min(kLogitsPerChunk, step_tokens * teacher.vocab_size);
  ObjectiveCosts costs{.fixed_bytes = kLogitTemporaries * chunk * kFloatBytes +
                                      teacher.vocab_size * teacher.hidden_size * element +
                                      walk.block_bytes,
                       .token_bytes = walk.position_bytes};
  if (device.is_cpu()) {
    costs.fixed_bytes +=
        std::min(HostStore::kDefaultResidentBytes, 2 * step_tokens * teacher.hidden_size * element);
  }
  return costs;
}

DistillationObjective::DistillationObjective(WeightSource& teacher, int64_t vocab_size,
                                             const DistillationOptions& options)
    : teacher_(teacher), options_(options), teacher_head_(teacher.Head()) {
  TORCH_CHECK(teacher.config().vocab_size == vocab_size, "The teacher has a vocabulary of ",
              teacher.config().vocab_size, ", the student one of ", vocab_size);
}

void DistillationObjective::Begin(const std::vector<TrainingBatch>& batches) {
  std::vector<at::Tensor> ids;
  for (const TrainingBatch& batch : batches) ids.push_back(batch.ids);
  std::vector<at::Tensor> hidden = ForwardHidden(teacher_, ids);
  hidden_.clear();
  for (size_t i = 0; i < batches.size(); ++i) {
    hidden_[batches[i].first_sequence] = std::move(hidden[i]);
  }
}

LossSum DistillationObjective::Evaluate(const TrainingBatch& batch, const at::Tensor& hidden,
                                        const at::Tensor& head, at::Tensor* gradient) const {
  return DistillationLoss(hidden, head, hidden_.at(batch.first_sequence).to(teacher_.device()),
                          teacher_head_, batch.targets, options_, gradient);
}

}  // namespace qpruner::engine
