#include "worker/engine/score/gradient_score.h"

#include <ATen/ATen.h>

#include "worker/engine/gradient/backward_walk.h"

namespace qpruner::engine {
namespace {

class GradientScoring final : public LinearTracing {
 public:
  GradientScoring(const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
                  const QuantizedWeight& quantized)
      : groups_(groups),
        formats_(formats),
        quantized_(quantized),
        sums_(groups.size(), std::vector<double>(formats.size())) {}

  // Half the sums per token.
  std::vector<std::vector<double>> Finish(int64_t tokens) && {
    for (std::vector<double>& of_group : sums_) {
      for (double& sum : of_group) sum /= 2.0 * static_cast<double>(tokens);
    }
    return std::move(sums_);
  }

  void EnterBlock(int64_t block, const BlockWeights& weights) override {
    differences_.clear();
    for (const Format& format : formats_) {
      PerLinear<at::Tensor>& difference = differences_.emplace_back();
      for (LinearKind kind : kLinearKinds) {
        const at::Tensor& weight = weights.weight[kind];
        const at::Tensor quantized = quantized_(block, kind, weight, format);
        // Bfloat16 of a bfloat16 model: nothing to keep.
        if (at::equal(quantized, weight)) continue;
        difference[kind] = quantized.to(at::kFloat) - weight.to(at::kFloat);
      }
    }
  }

  void TakeTraces(int64_t block, int64_t batch, const PerLinear<LinearTrace>& traces) override {
    for (size_t group = 0; group < groups_.size(); ++group) {
      if (groups_[group].block != block) continue;
      for (LinearKind kind : groups_[group].linears) {
        const at::Tensor x = traces[kind].input.to(at::kFloat);
        const at::Tensor dy = traces[kind].output_gradient.to(at::kFloat);
        for (size_t format = 0; format < formats_.size(); ++format) {
          if (!differences_[format][kind].defined()) continue;
          const at::Tensor change = at::matmul(x, differences_[format][kind].t());
          sums_[group][format] += (dy * change).square_().sum(at::kDouble).item<double>();
        }
      }
    }
  }

  void LeaveBlock(int64_t block) override { differences_.clear(); }

 private:
  const std::vector<LinearGroup>& groups_;
  const std::vector<Format>& formats_;
  const QuantizedWeight& quantized_;
  std::vector<PerLinear<at::Tensor>>
      differences_;  // [format]: Q(W) - W of the block in work; undefined: 0
  std::vector<std::vector<double>> sums_;
};

}  // namespace

at::Tensor RoundToNearest(const at::Tensor& weight, const Format& format) {
  return Dequantize(Quantize(weight, format), weight.scalar_type(), weight.device());
}

QuantizedWeight RoundingToNearest() {
  return [](int64_t, LinearKind, const at::Tensor& weight, const Format& format) {
    return RoundToNearest(weight, format);
  };
}

std::vector<std::vector<double>> ScoreByGradient(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized, const std::function<void(double fraction)>& on_progress) {
  GradientScoring scoring(groups, formats, quantized);
  const LossSum loss = WalkBackward(source, batches, scoring, [&](int64_t done, int64_t of) {
    if (on_progress) on_progress(static_cast<double>(done) / static_cast<double>(of));
  });
  TORCH_CHECK(loss.tokens > 0, "The gradient score needs calibration samples");
  return std::move(scoring).Finish(loss.tokens);
}

}  // namespace qpruner::engine
