#include "worker/engine/evaluate/head_scores.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

namespace qpruner::engine {
namespace {

// Logits that exist at once, in elements: 64 MiB in float32.
constexpr int64_t kMaxLogits = int64_t{16} << 20;

}  // namespace

TargetScores ScoreTargets(const at::Tensor& rows, const at::Tensor& head,
                          const at::Tensor& targets) {
  at::NoGradGuard no_grad;
  const int64_t count = rows.size(0);
  TORCH_CHECK(targets.numel() == count, "Targets of ", targets.numel(), " rows for ", count);
  TargetScores scores{at::empty({count}, at::kDouble), at::empty({count}, at::kLong)};
  const int64_t chunk = std::max<int64_t>(1, kMaxLogits / head.size(0));
  for (int64_t begin = 0; begin < count; begin += chunk) {
    const int64_t size = std::min(chunk, count - begin);
    const at::Tensor logits =
        at::linear(rows.narrow(0, begin, size).to(head.device(), head.scalar_type()), head);
    const at::Tensor log_p = at::log_softmax(logits, -1, at::kFloat);
    const at::Tensor target = targets.narrow(0, begin, size).to(head.device()).unsqueeze(1);
    scores.log_probability.narrow(0, begin, size).copy_(log_p.gather(1, target).squeeze(1));
    scores.most_likely.narrow(0, begin, size).copy_(logits.argmax(-1));
  }
  return scores;
}

}  // namespace qpruner::engine
