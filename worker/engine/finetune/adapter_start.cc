#include "worker/engine/finetune/adapter_start.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>

namespace qpruner::engine {

AdapterStart QuantizeWithAdapter(WeightSource& source,
                                 const std::vector<PerLinear<Format>>& formats, AdapterInit init,
                                 int loftq_iterations, const LoraOptions& options,
                                 const std::function<void(double fraction)>& on_progress) {
  const int64_t block_count = source.config().num_blocks();
  TORCH_CHECK(static_cast<int64_t>(formats.size()) == block_count, "Formats are given for ",
              formats.size(), " blocks, the model has ", block_count);
  at::NoGradGuard no_grad;
  AdapterStart start;
  start.adapter = ZeroAdapter(source.config(), options, source.device());
  double square_quantized = 0;
  double square = 0;
  for (int64_t block = 0; block < block_count; ++block) {
    const BlockWeights weights = source.Block(block);
    PerLinear<PackedWeight>& packed = start.base.emplace_back();
    for (LinearKind kind : kLinearKinds) {
      const at::Tensor weight = weights.weight[kind].to(at::kFloat);
      const Format& format = formats[block][kind];
      const auto round_trip = [&](const at::Tensor& w) {
        packed[kind] = Quantize(w, format);
        return Dequantize(packed[kind], at::kFloat, w.device());
      };
      double error_quantized = 0;
      double error = 0;
      if (init == AdapterInit::kLoftq && format.kind != FormatKind::kBfloat16) {
        const LoftqStart loftq = InitLoftq(weight, round_trip, options.rank, options.scale(),
                                           loftq_iterations, start.adapter.a[block][kind]);
        start.adapter.a[block][kind] = loftq.a;
        start.adapter.b[block][kind] = loftq.b;
        error_quantized = loftq.error_quantized;
        error = loftq.error;
      } else {
        error_quantized = at::linalg_norm(weight - round_trip(weight)).item<double>();
        error = error_quantized;
      }
      square_quantized += error_quantized * error_quantized;
      square += error * error;
    }
    if (on_progress) on_progress(static_cast<double>(block + 1) / static_cast<double>(block_count));
  }
  start.error_quantized = std::sqrt(square_quantized);
  start.error = std::sqrt(square);
  return start;
}

}  // namespace qpruner::engine
