#include "worker/engine/finetune/lora.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>

#include "worker/engine/finetune/low_rank.h"
#include "worker/engine/split_mix.h"

namespace qpruner::engine {
int64_t LoraAdapter::parameter_count() const {
  int64_t count = 0;
  for (size_t block = 0; block < a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      if (!a[block][kind].defined()) continue;
      count += a[block][kind].numel() + b[block][kind].numel();
    }
  }
  return count;
}

LoraAdapter LoraAdapter::Clone() const {
  LoraAdapter copy = *this;
  for (size_t block = 0; block < a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      if (!a[block][kind].defined()) continue;
      copy.a[block][kind] = a[block][kind].detach().clone();
      copy.b[block][kind] = b[block][kind].detach().clone();
    }
  }
  return copy;
}

at::Tensor InitialA(const LoraOptions& options, int64_t block, LinearKind kind,
                    int64_t in_features) {
  const uint64_t seed =
      SplitMix(SplitMix(options.seed) + static_cast<uint64_t>(block) * kLinearKindCount +
               static_cast<uint64_t>(kind));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double bound = 1.0 / std::sqrt(static_cast<double>(in_features));
  return at::empty({options.rank, in_features}, at::kFloat).uniform_(-bound, bound, generator);
}

LoraAdapter ZeroAdapter(const ModelConfig& config, const LoraOptions& options, at::Device device) {
  LoraAdapter adapter;
  adapter.rank = options.rank;
  adapter.alpha = options.alpha;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    PerLinear<at::Tensor>& a = adapter.a.emplace_back();
    PerLinear<at::Tensor>& b = adapter.b.emplace_back();
    for (LinearKind kind : options.targets) {
      const std::vector<int64_t> shape = LinearShape(config, config.blocks[block], kind);
      a[kind] = InitialA(options, block, kind, shape[1]).to(device);
      b[kind] = at::zeros({shape[0], options.rank}, at::TensorOptions(device).dtype(at::kFloat));
    }
  }
  return adapter;
}

LoftqStart InitLoftq(const at::Tensor& weight,
                     const std::function<at::Tensor(const at::Tensor& weight)>& quantized,
                     int64_t rank, double scale, int iterations, const at::Tensor& fallback_a) {
  TORCH_CHECK(iterations >= 1, "LoftQ needs at least 1 iteration, not ", iterations);
  TORCH_CHECK(scale > 0, "LoftQ needs alpha / rank > 0, not ", scale);
  at::NoGradGuard no_grad;
  const at::Tensor w = weight.to(at::kFloat);
  LoftqStart start;
  at::Tensor update = at::zeros_like(w);  // scale B A
  for (int t = 0; t < iterations; ++t) {
    start.base_before_quantization = w - update;
    const at::Tensor residual = w - quantized(start.base_before_quantization).to(at::kFloat);
    if (t == 0) start.error_quantized = at::linalg_norm(residual).item<double>();
    const LeadingTriplets svd = LeadingSvd(residual, rank, /*seed=*/0);
    const int64_t found = svd.left.size(1);
    start.a = fallback_a.to(w.device(), at::kFloat).clone();
    start.b = at::zeros({w.size(0), rank}, w.options());
    start.a.narrow(0, 0, found).copy_(svd.right);
    start.b.narrow(1, 0, found).copy_(svd.left / scale);
    update = scale * at::matmul(start.b, start.a);
    start.error = at::linalg_norm(residual - update).item<double>();
  }
  return start;
}

LinearFunction LoraLinear(const LoraAdapter& adapter, int64_t block) {
  return [&adapter, block](LinearKind kind, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias) {
    if (!adapter.adapts(block, kind)) return PlainLinear(kind, x, weight, bias);
    const at::Tensor a = adapter.a[block][kind].to(x.scalar_type());
    const at::Tensor b = adapter.b[block][kind].to(x.scalar_type());
    return PlainLinear(kind, x, weight, bias) + at::linear(at::linear(x, a), b) * adapter.scale();
  };
}

}  // namespace qpruner::engine
