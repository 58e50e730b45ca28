#include "worker/engine/finetune/adapter_start.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>

namespace qpruner::engine {

AdapterStart StartAdapter(WeightSource& source, QuantizedSource& quantized, AdapterInit init,
                          int loftq_iterations, const LoraOptions& options,
                          const std::function<void(double fraction)>& on_progress) {
  at::NoGradGuard no_grad;
  const int64_t block_count = source.config().num_blocks();
  AdapterStart start;
  start.adapter = ZeroAdapter(source.config(), options, source.device());
  double square_quantized = 0;
  double square = 0;
  for (int64_t block = 0; block < block_count; ++block) {
    const BlockWeights weights = source.Block(block);
    for (LinearKind kind : kLinearKinds) {
      const at::Tensor& weight = weights.weight[kind];
      const Format format = quantized.assignment().at(LinearName(block, kind));
      if (init == AdapterInit::kZero || format.kind == FormatKind::kBfloat16 ||
          !start.adapter.adapts(block, kind)) {
        const at::Tensor stored =
            Dequantize(quantized.Packed(block, kind), at::kFloat, weight.device());
        const double error = at::linalg_norm(weight.to(at::kFloat) - stored).item<double>();
        square_quantized += error * error;
        square += error * error;
        continue;
      }
      // A weight that was quantized ahead cannot be quantized again here.
      const bool fixed = quantized.InStore(block, kind);
      TORCH_CHECK_VALUE(!fixed || loftq_iterations == 1,
                        "LoftQ with more than 1 iteration quantizes changed weights, which only "
                        "round-to-nearest can");
      const auto round_trip = [&](const at::Tensor& w) {
        return Dequantize(fixed ? quantized.Packed(block, kind) : Quantize(w, format), at::kFloat,
                          w.device());
      };
      const LoftqStart loftq = InitLoftq(weight, round_trip, options.rank, options.scale(),
                                         loftq_iterations, start.adapter.a[block][kind]);
      if (!fixed) {
        quantized.SetPacked(block, kind, Quantize(loftq.base_before_quantization, format));
      }
      start.adapter.a[block][kind] = loftq.a;
      start.adapter.b[block][kind] = loftq.b;
      square_quantized += loftq.error_quantized * loftq.error_quantized;
      square += loftq.error * loftq.error;
    }
    if (on_progress) on_progress(static_cast<double>(block + 1) / static_cast<double>(block_count));
  }
  start.error_quantized = std::sqrt(square_quantized);
  start.error = std::sqrt(square);
  return start;
}

}  // namespace qpruner::engine
