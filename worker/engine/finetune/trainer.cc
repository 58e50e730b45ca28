#include "worker/engine/finetune/trainer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/gradient/backward_walk.h"

namespace qpruner::engine {
namespace {

// Fisher-Yates by hand: std::shuffle differs between libraries.
std::vector<int64_t> Permutation(int64_t count, std::mt19937_64 generator) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count; i > 1; --i) {
    std::swap(order[i - 1], order[generator() % static_cast<uint64_t>(i)]);
  }
  return order;
}

std::mt19937_64 GeneratorOf(uint64_t seed, uint64_t stream) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                         static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  return std::mt19937_64(sequence);
}

// Sums the gradients of A and B over the batches of a walk.
class AdapterDifferentiation final : public BlockDifferentiation {
 public:
  // Leaves that share storage with `adapter`.
  explicit AdapterDifferentiation(const LoraAdapter& adapter) : leaves_(adapter) {
    gradients_.resize(adapter.a.size());
    for (size_t block = 0; block < adapter.a.size(); ++block) {
      for (LinearKind kind : kLinearKinds) {
        leaves_.a[block][kind] = adapter.a[block][kind].detach().requires_grad_(true);
        leaves_.b[block][kind] = adapter.b[block][kind].detach().requires_grad_(true);
      }
    }
  }

  LinearFunction Linear(int64_t block) override { return LoraLinear(leaves_, block); }

  std::vector<at::Tensor> Wanted(int64_t block, int64_t batch) override {
    std::vector<at::Tensor> wanted;
    for (LinearKind kind : kLinearKinds) {
      wanted.push_back(leaves_.a[block][kind]);
      wanted.push_back(leaves_.b[block][kind]);
    }
    return wanted;
  }

  void Take(int64_t block, int64_t batch, const std::vector<at::Tensor>& gradients) override {
    std::vector<at::Tensor>& sums = gradients_[block];
    if (sums.empty()) {
      sums = gradients;
      return;
    }
    for (size_t i = 0; i < sums.size(); ++i) sums[i].add_(gradients[i]);
  }

  // In the order of TrainedParameters.
  std::vector<at::Tensor> Finish() && {
    std::vector<at::Tensor> all;
    for (std::vector<at::Tensor>& of_block : gradients_) {
      all.insert(all.end(), of_block.begin(), of_block.end());
    }
    return all;
  }

 private:
  LoraAdapter leaves_;
  std::vector<std::vector<at::Tensor>> gradients_;  // [block]
};

// The chosen sequences in order, `size` a batch.
std::vector<TokenBatch> MicroBatches(const std::vector<TokenIds>& sequences,
                                     const std::vector<int64_t>& chosen, int64_t size) {
  std::vector<TokenBatch> batches;
  const auto count = static_cast<int64_t>(chosen.size());
  for (int64_t first = 0; first < count; first += size) {
    batches.push_back(PadRows(
        sequences, {chosen.begin() + first, chosen.begin() + std::min(count, first + size)}));
  }
  return batches;
}

void MoveTo(at::Device device, LoraAdapter& adapter) {
  for (size_t block = 0; block < adapter.a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      adapter.a[block][kind] = adapter.a[block][kind].to(device);
      adapter.b[block][kind] = adapter.b[block][kind].to(device);
    }
  }
}

absl::StatusOr<double> HeldOutLoss(WeightSource& base, const LoraAdapter& adapter,
                                   const std::vector<TokenBatch>& held_out, int64_t step) {
  MergedSource merged(base, adapter);
  const double loss = NextTokenLoss(merged, held_out).mean();
  if (!std::isfinite(loss)) {
    return absl::InternalError(absl::StrCat(
        "Fine-tuning diverged: the held-out loss is not finite after step ", step,
        "; a lower fine_tune.learning_rate or more fine_tune.warmup_steps would help"));
  }
  return loss;
}

}  // namespace

double LearningRate(const TrainerOptions& options, int64_t step) {
  if (step < options.warmup_steps) {
    return options.learning_rate * static_cast<double>(step) /
           static_cast<double>(std::max<int64_t>(1, options.warmup_steps));
  }
  const double progress =
      static_cast<double>(step - options.warmup_steps) /
      static_cast<double>(std::max<int64_t>(1, options.steps - options.warmup_steps));
  return options.learning_rate * std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress)));
}

std::vector<TokenIds> PackDocuments(const std::vector<TokenIds>& documents, int64_t length,
                                    uint64_t seed) {
  // Stream ~0 is never an epoch's.
  const std::vector<int64_t> order =
      Permutation(static_cast<int64_t>(documents.size()), GeneratorOf(seed, ~uint64_t{0}));
  std::vector<TokenIds> sequences;
  TokenIds current;
  for (int64_t document : order) {
    for (int32_t token : documents[document]) {
      current.push_back(token);
      if (static_cast<int64_t>(current.size()) == length) {
        sequences.push_back(std::move(current));
        current.clear();
      }
    }
  }
  if (current.size() >= 2) sequences.push_back(std::move(current));
  return sequences;
}

std::vector<int64_t> SequencesOfStep(int64_t sequence_count, int64_t batch_size, uint64_t seed,
                                     int64_t step) {
  std::vector<int64_t> chosen;
  int64_t epoch = -1;
  std::vector<int64_t> order;
  for (int64_t position = step * batch_size; position < (step + 1) * batch_size; ++position) {
    if (position / sequence_count != epoch) {
      epoch = position / sequence_count;
      order = Permutation(sequence_count, GeneratorOf(seed, static_cast<uint64_t>(epoch)));
    }
    chosen.push_back(order[position % sequence_count]);
  }
  return chosen;
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
  RETURN_IF_ERROR(at_least("steps", options.steps, 0));
  RETURN_IF_ERROR(at_least("batch_size", options.batch_size, 1));
  RETURN_IF_ERROR(at_least("micro_batch_size", options.micro_batch_size, 1));
  RETURN_IF_ERROR(at_least("sequence_length", options.sequence_length, 2));
  RETURN_IF_ERROR(at_least("warmup_steps", options.warmup_steps, 0));
  RETURN_IF_ERROR(at_least("evaluate_every", options.evaluate_every, 1));
  if (options.warmup_steps > options.steps) {
    return absl::InvalidArgumentError(
        absl::StrCat("fine_tune.warmup_steps must not exceed fine_tune.steps, which is ",
                     options.steps, ", not ", options.warmup_steps));
  }
  if (!(options.learning_rate > 0) || !std::isfinite(options.learning_rate)) {
    return absl::InvalidArgumentError(
        absl::StrCat("fine_tune.learning_rate must be above 0, not ", options.learning_rate));
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

std::vector<at::Tensor> TrainedParameters(const LoraAdapter& adapter) {
  std::vector<at::Tensor> parameters;
  for (size_t block = 0; block < adapter.a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      parameters.push_back(adapter.a[block][kind]);
      parameters.push_back(adapter.b[block][kind]);
    }
  }
  return parameters;
}

LoraGradients ComputeLoraGradients(WeightSource& base, const LoraAdapter& adapter,
                                   const std::vector<TokenBatch>& micro_batches) {
  AdapterDifferentiation differentiation(adapter);
  const LossSum loss = WalkBackward(base, micro_batches, differentiation);
  LoraGradients result;
  result.loss = loss.mean();
  result.gradients = std::move(differentiation).Finish();
  at::NoGradGuard no_grad;
  for (at::Tensor& gradient : result.gradients) {
    gradient.div_(static_cast<double>(std::max<int64_t>(1, loss.tokens)));
  }
  return result;
}

absl::Status Train(WeightSource& base, const std::vector<TokenIds>& sequences,
                   const std::vector<TokenBatch>& held_out, const TrainerOptions& options,
                   TrainingState& state, const TrainingObserver& observer) {
  RETURN_IF_ERROR(CheckTrainer(options));
  if (sequences.empty()) {
    return absl::InvalidArgumentError(
        "The fine-tuning share of the text is empty: at least 2 tokens are needed");
  }
  if (held_out.empty()) {
    return absl::InvalidArgumentError("The held-out text is empty: at least 2 tokens are needed");
  }
  MoveTo(base.device(), state.adapter);
  MoveTo(base.device(), state.best);
  std::vector<at::Tensor> parameters = TrainedParameters(state.adapter);

  const auto evaluate = [&]() -> absl::StatusOr<double> {
    ASSIGN_OR_RETURN(const double loss, HeldOutLoss(base, state.adapter, held_out, state.step));
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

  if (state.curve.empty()) {
    ASSIGN_OR_RETURN(const double loss, evaluate());
    if (observer && !observer({.step = 0, .steps = options.steps, .held_out_loss = loss}, state)) {
      return absl::OkStatus();
    }
  }
  const auto count = static_cast<int64_t>(sequences.size());
  while (state.step < options.steps) {
    const std::vector<int64_t> chosen =
        SequencesOfStep(count, options.batch_size, options.seed, state.step);
    LoraGradients found = ComputeLoraGradients(
        base, state.adapter, MicroBatches(sequences, chosen, options.micro_batch_size));
    if (!std::isfinite(found.loss)) {
      return absl::InternalError(absl::StrCat(
          "Fine-tuning diverged: the loss is not finite at step ", state.step + 1,
          "; a lower fine_tune.learning_rate or more fine_tune.warmup_steps would help"));
    }
    if (options.max_gradient_norm > 0) {
      ClipGradientNorm(found.gradients, options.max_gradient_norm);
    }
    AdamWStep(options.adam_w, LearningRate(options, state.step), found.gradients, parameters,
              state.optimizer);
    ++state.step;
    state.loss_sum += found.loss;
    ++state.loss_count;

    TrainingProgress progress{.step = state.step, .steps = options.steps, .train_loss = found.loss};
    if (state.step % options.evaluate_every == 0 || state.step == options.steps) {
      ASSIGN_OR_RETURN(progress.held_out_loss, evaluate());
    }
    if (observer && !observer(progress, state)) return absl::OkStatus();
  }
  return absl::OkStatus();
}

}  // namespace qpruner::engine
