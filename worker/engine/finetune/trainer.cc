#include "worker/engine/finetune/trainer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/finetune/lora_gradients.h"

namespace qpruner::engine {
namespace {

void MoveTo(at::Device device, LoraAdapter& adapter) {
  for (size_t block = 0; block < adapter.a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      if (!adapter.a[block][kind].defined()) continue;
      adapter.a[block][kind] = adapter.a[block][kind].to(device);
      adapter.b[block][kind] = adapter.b[block][kind].to(device);
    }
  }
}

// The batches in pieces of whole rows, of at most `most_tokens` tokens each, or one row.
std::vector<TrainingBatch> HeldOutBatches(const std::vector<TokenBatch>& held_out,
                                          int64_t most_tokens) {
  std::vector<TrainingBatch> pieces;
  for (const TokenBatch& tokens : held_out) {
    const TrainingBatch batch = PlainBatch(tokens);
    const int64_t rows = std::max<int64_t>(1, most_tokens / batch.ids.size(1));
    for (int64_t first = 0; first < batch.ids.size(0); first += rows) {
      const int64_t count = std::min(rows, batch.ids.size(0) - first);
      pieces.push_back({.ids = batch.ids.narrow(0, first, count),
                        .targets = batch.targets.narrow(0, first, count)});
    }
  }
  return pieces;
}

// What to do about a loss that is not finite.
absl::Status Diverged(const std::string& what) {
  return absl::InternalError(
      absl::StrCat("Fine-tuning diverged: ", what,
                   "; a lower fine_tune.learning_rate or more fine_tune.warmup_steps would help"));
}

}  // namespace

HeldOutShape ShapeOf(const std::vector<TokenBatch>& held_out) {
  HeldOutShape shape;
  for (const TokenBatch& batch : held_out) {
    shape.batch_tokens = std::max(shape.batch_tokens, batch.ids.numel());
    shape.length = std::max(shape.length, batch.ids.size(1));
  }
  return shape;
}

absl::StatusOr<TrainingPlan> PlanOf(const ModelConfig& config, int64_t rank, at::Device device,
                                    const TrainerOptions& options, const HeldOutShape& held_out) {
  return PlanTraining(config, {.rank = rank,
                               .batch_size = options.batch_size,
                               .micro_batch_size = options.micro_batch_size,
                               .sequence_length = options.sequence_length,
                               .held_out_tokens = held_out.batch_tokens,
                               .held_out_length = held_out.length,
                               .objective = options.objective,
                               .base_bytes = options.base_bytes,
                               .dtype = options.dtype,
                               .on_host = device.is_cpu(),
                               .memory_limit_bytes = options.memory_limit_bytes});
}

TrainingState TrainingState::Clone() const {
  TrainingState copy = *this;
  copy.adapter = adapter.Clone();
  copy.best = best.Clone();
  for (at::Tensor& mean : copy.optimizer.mean) mean = mean.clone();
  for (at::Tensor& mean : copy.optimizer.square_mean) mean = mean.clone();
  return copy;
}

absl::Status CheckTrainer(const TrainerOptions& options) {
  const auto at_least = [](absl::string_view field, int64_t value, int64_t least) {
    if (value >= least) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("fine_tune.", field, " must be at least ", least, ", not ", value));
  };
  RETURN_IF_ERROR(at_least("steps", options.steps(), 0));
  RETURN_IF_ERROR(at_least("batch_size", options.batch_size, 1));
  RETURN_IF_ERROR(at_least("micro_batch_size", options.micro_batch_size, 1));
  RETURN_IF_ERROR(at_least("sequence_length", options.sequence_length, 2));
  RETURN_IF_ERROR(at_least("warmup_steps", options.learning_rate.warmup_steps, 0));
  RETURN_IF_ERROR(at_least("evaluate_every", options.evaluate_every, 1));
  const LearningRateOptions& rate = options.learning_rate;
  if (rate.warmup_steps > rate.steps) {
    return absl::InvalidArgumentError(
        absl::StrCat("fine_tune.warmup_steps must not exceed fine_tune.steps, which is ",
                     rate.steps, ", not ", rate.warmup_steps));
  }
  if (!(rate.peak > 0) || !std::isfinite(rate.peak)) {
    return absl::InvalidArgumentError(
        absl::StrCat("fine_tune.learning_rate must be above 0, not ", rate.peak));
  }
  if (!(options.dropout >= 0 && options.dropout < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("fine_tune.dropout must be in [0, 1), not ", options.dropout));
  }
  if (!(options.max_gradient_norm >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "fine_tune.max_gradient_norm must not be negative, is ", options.max_gradient_norm));
  }
  return absl::OkStatus();
}

TrainingState StartTraining(LoraAdapter adapter) {
  TrainingState state;
  state.best = adapter.Clone();
  state.adapter = std::move(adapter);
  return state;
}

absl::Status Train(WeightSource& base, const std::vector<TrainingSequence>& sequences,
                   const std::vector<TokenBatch>& held_out, const TrainerOptions& options,
                   TrainingState& state, const TrainingObserver& observer,
                   TrainingObjective* objective) {
  RETURN_IF_ERROR(CheckTrainer(options));
  CrossEntropyObjective cross_entropy;
  if (objective == nullptr) objective = &cross_entropy;
  if (sequences.empty()) {
    return absl::InvalidArgumentError(
        "The fine-tuning share of the text is empty: at least 2 tokens are needed");
  }
  if (held_out.empty()) {
    return absl::InvalidArgumentError("The held-out text is empty: at least 2 tokens are needed");
  }
  ASSIGN_OR_RETURN(const TrainingPlan plan, PlanOf(base.config(), state.adapter.rank, base.device(),
                                                   options, ShapeOf(held_out)));
  MoveTo(base.device(), state.adapter);
  MoveTo(base.device(), state.best);
  std::vector<at::Tensor> parameters = TrainedParameters(state.adapter);
  LoraGradientComputer computer(base, plan, options.dtype);
  const std::vector<TrainingBatch> held_out_batches =
      HeldOutBatches(held_out, plan.held_out_tokens);

  const auto evaluate = [&]() -> absl::StatusOr<double> {
    const double loss = computer.Loss(state.adapter, held_out_batches, cross_entropy).mean();
    if (!std::isfinite(loss)) {
      return Diverged(absl::StrCat("the held-out loss is not finite after step ", state.step));
    }
    CurvePoint point{.step = state.step, .held_out_loss = loss};
    if (state.loss_count > 0) {
      point.train_loss = state.loss_sum / static_cast<double>(state.loss_count);
    }
    state.loss_sum = 0;
    state.loss_count = 0;
    const bool better = std::all_of(state.curve.begin(), state.curve.end(),
                                    [&](const CurvePoint& p) { return loss < p.held_out_loss; });
    state.curve.push_back(point);
    if (better) {
      state.best = state.adapter.Clone();
      state.best_step = state.step;
    }
    return loss;
  };

  const int64_t steps = options.steps();
  if (state.curve.empty()) {
    ASSIGN_OR_RETURN(const double loss, evaluate());
    if (observer && !observer({.step = 0, .steps = steps, .held_out_loss = loss}, state)) {
      return absl::OkStatus();
    }
  }
  const auto count = static_cast<int64_t>(sequences.size());
  while (state.step < steps) {
    const std::vector<TrainingBatch> batches = MakeTrainingBatches(
        sequences, SequencesOfStep(count, options.batch_size, options.seed, state.step),
        plan.micro_batch_size);
    objective->Begin(batches);
    LoraGradients found = computer.Gradients(
        state.adapter, batches, *objective,
        {.probability = options.dropout, .seed = options.seed, .step = state.step});
    if (!std::isfinite(found.loss)) {
      return Diverged(absl::StrCat("the loss is not finite at step ", state.step + 1));
    }
    if (options.max_gradient_norm > 0) {
      ClipGradientNorm(found.gradients, options.max_gradient_norm);
    }
    AdamWStep(options.adam_w, LearningRate(options.learning_rate, state.step), found.gradients,
              parameters, state.optimizer);
    ++state.step;
    state.loss_sum += found.loss;
    ++state.loss_count;

    TrainingProgress progress{.step = state.step, .steps = steps, .train_loss = found.loss};
    if (state.step % options.evaluate_every == 0 || state.step == steps) {
      ASSIGN_OR_RETURN(progress.held_out_loss, evaluate());
    }
    if (observer && !observer(progress, state)) return absl::OkStatus();
  }
  return absl::OkStatus();
}

}  // namespace qpruner::engine
