#include "worker/engine/calibrate/activation_scaling.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <limits>

#include "worker/engine/calibrate/input_moments.h"

namespace qpruner::engine {
namespace {

// Activations below this share of the largest are taken as it: a channel that is all but silent
// must not get a factor beyond what 16-bit weights can hold.
constexpr double kSmallestActivation = 1e-4;

// A channel of value for each channel of output's input: query head h reads key/value head h / g.
at::Tensor RepeatForQueryHeads(const at::Tensor& of_value, const ModelConfig& config,
                               const BlockShape& shape) {
  return of_value.view({shape.num_kv_heads, 1, config.head_dim})
      .expand({shape.num_kv_heads, shape.num_heads / shape.num_kv_heads, config.head_dim})
      .reshape({-1});
}

// Mean square of x (W - Q)^T for inputs with the given second moments.
double OutputError(const at::Tensor& difference, const at::Tensor& moments) {
  return (at::matmul(difference, moments) * difference).sum(at::kDouble).item<double>();
}

struct Choice {
  at::Tensor factors;
  double error_unscaled = 0;
  double error = 0;
};

// The best factors for linears that share an input. `spread` gives factors of the input's channels
// from those of the activations (the same, or repeated for query heads).
Choice ChooseFactors(const std::vector<at::Tensor>& weights, const at::Tensor& moments,
                     const at::Tensor& mean_square, const Format& format, int grid_size,
                     const std::function<at::Tensor(const at::Tensor&)>& spread) {
  const at::Tensor root = mean_square.sqrt();
  const at::Tensor activation =
      root.clamp_min(std::max(root.max().item<double>() * kSmallestActivation,
                              static_cast<double>(std::numeric_limits<float>::min())));
  Choice best{.error = std::numeric_limits<double>::infinity()};
  for (int step = 0; step < grid_size; ++step) {
    at::Tensor factors = activation.pow(static_cast<double>(step) / grid_size);
    factors = factors / (factors.max() * factors.min()).sqrt();
    const at::Tensor columns = spread(factors);
    double error = 0;
    for (const at::Tensor& weight : weights) {
      const at::Tensor back =
          Dequantize(Quantize(weight * columns, format), at::kFloat, at::kCPU) / columns;
      error += OutputError(back - weight, moments);
    }
    if (step == 0) best.error_unscaled = error;
    if (error < best.error) {
      best.error = error;
      best.factors = factors;
    }
  }
  // Only where all errors are NaN.
  if (!best.factors.defined()) best.factors = at::ones_like(activation);
  return best;
}

at::Tensor Times(const at::Tensor& tensor, const at::Tensor& factors) {
  return (tensor.to(at::kFloat) * factors.to(tensor.device())).to(tensor.scalar_type());
}

at::Tensor Over(const at::Tensor& tensor, const at::Tensor& factors) {
  if (!tensor.defined()) return tensor;
  return (tensor.to(at::kFloat) / factors.to(tensor.device())).to(tensor.scalar_type());
}

}  // namespace

ActivationScaling FindActivationScaling(WeightSource& source,
                                        const std::vector<TokenBatch>& batches,
                                        const Format& format, int grid_size,
                                        const std::function<void(double fraction)>& on_progress) {
  TORCH_CHECK_VALUE(grid_size >= 1, "Activation scaling needs a grid of at least 1 step");
  at::NoGradGuard no_grad;
  const ModelConfig& config = source.config();
  ActivationScaling scaling;
  const auto same = [](const at::Tensor& factors) { return factors; };
  WalkInputMoments(
      source, batches,
      [&](int64_t block, const BlockWeights& weights, const InputMoments& moments) {
        const BlockShape& shape = config.blocks[static_cast<size_t>(block)];
        const auto choose = [&](const std::vector<LinearKind>& kinds, const at::Tensor& mean_square,
                                const std::function<at::Tensor(const at::Tensor&)>& spread) {
          std::vector<at::Tensor> of_kinds;
          for (LinearKind kind : kinds) {
            of_kinds.push_back(weights.weight[kind].to(at::kCPU, at::kFloat));
          }
          const Choice choice = ChooseFactors(of_kinds, moments[kinds.front()], mean_square, format,
                                              grid_size, spread);
          scaling.error_unscaled += choice.error_unscaled;
          scaling.error_scaled += choice.error;
          return choice.factors;
        };
        const auto mean_square = [&](LinearKind kind) { return moments[kind].diagonal(); };
        // All query heads that read a value channel share its factor.
        const at::Tensor of_value = mean_square(LinearKind::kOutput)
                                        .reshape({shape.num_kv_heads, -1, config.head_dim})
                                        .mean(1)
                                        .reshape({-1});
        scaling.blocks.push_back(
            {.attention_input = choose({LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue},
                                       mean_square(LinearKind::kQuery), same),
             .attention_value = choose({LinearKind::kOutput}, of_value,
                                       [&](const at::Tensor& factors) {
                                         return RepeatForQueryHeads(factors, config, shape);
                                       }),
             .mlp_input =
                 choose({LinearKind::kGate, LinearKind::kUp}, mean_square(LinearKind::kGate), same),
             .mlp_hidden = choose({LinearKind::kDown}, mean_square(LinearKind::kDown), same)});
      },
      on_progress);
  return scaling;
}

ScaledSource::ScaledSource(WeightSource& base, std::vector<BlockScales> blocks)
    : WrappedSource(base), blocks_(std::move(blocks)) {
  TORCH_CHECK_VALUE(static_cast<int64_t>(blocks_.size()) == base.config().num_blocks(),
                    "Factors for ", blocks_.size(), " blocks, for a model of ",
                    base.config().num_blocks());
}

BlockWeights ScaledSource::Block(int64_t block) {
  BlockWeights weights = base().Block(block);
  const BlockScales& scales = blocks_.at(static_cast<size_t>(block));
  const BlockShape& shape = config().blocks[static_cast<size_t>(block)];
  PerLinear<at::Tensor>& weight = weights.weight;
  weights.attention_norm = Over(weights.attention_norm, scales.attention_input);
  weights.mlp_norm = Over(weights.mlp_norm, scales.mlp_input);
  for (LinearKind kind : {LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue}) {
    weight[kind] = Times(weight[kind], scales.attention_input);
  }
  for (LinearKind kind : {LinearKind::kGate, LinearKind::kUp}) {
    weight[kind] = Times(weight[kind], scales.mlp_input);
  }
  const auto divide_rows = [&](LinearKind kind, const at::Tensor& factors) {
    weight[kind] = Over(weight[kind], factors.unsqueeze(1));
    weights.bias[kind] = Over(weights.bias[kind], factors);
  };
  divide_rows(LinearKind::kValue, scales.attention_value);
  divide_rows(LinearKind::kUp, scales.mlp_hidden);
  weight[LinearKind::kOutput] = Times(weight[LinearKind::kOutput],
                                      RepeatForQueryHeads(scales.attention_value, config(), shape));
  weight[LinearKind::kDown] = Times(weight[LinearKind::kDown], scales.mlp_hidden);
  return weights;
}

}  // namespace qpruner::engine
