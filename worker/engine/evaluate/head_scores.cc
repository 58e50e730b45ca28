#include "worker/engine/evaluate/head_scores.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/evaluate/logit_rows.h"
#include "worker/engine/model/decoder.h"

namespace qpruner::engine {
namespace {

// Logits that exist at once, in elements: 64 MiB in float32, for each model.
constexpr int64_t kMaxLogits = int64_t{16} << 20;

// Logits of some rows. Log-probabilities are written down only where they are not read in place.
class ChunkScores {
 public:
  ChunkScores(const HeadRows& model, int64_t begin, int64_t size, bool plain)
      : log_type_(plain ? at::kDouble : at::kFloat) {
    logits_ = HeadLogits(model.rows.narrow(0, begin, size).to(model.head.device()), model.head);
    const at::ScalarType type = logits_.scalar_type();
    in_place_ = !plain && logits_.is_cpu() && (type == at::kFloat || type == at::kBFloat16);
    if (in_place_) {
      summary_ = SummarizeRows(logits_);
    } else {
      log_p_ = at::log_softmax(logits_, -1, log_type_);
    }
  }

  // [rows] float64
  at::Tensor LogProbability(const at::Tensor& target) const {
    const at::Tensor column = target.to(logits_.device()).unsqueeze(1);
    if (in_place_) {
      return logits_.gather(1, column).squeeze(1).to(at::kDouble).sub(summary_.log_sum_exp);
    }
    return log_p_.gather(1, column).squeeze(1).to(at::kDouble);
  }

  at::Tensor MostLikely() const { return in_place_ ? summary_.most_likely : logits_.argmax(-1); }

  // Sum over the rows of KL(reference || this).
  double Divergence(const ChunkScores& reference) const {
    if (in_place_ && reference.in_place_ &&
        logits_.scalar_type() == reference.logits_.scalar_type()) {
      return DivergeRows(reference.logits_, reference.summary_.log_sum_exp, logits_,
                         summary_.log_sum_exp)
          .sum()
          .item<double>();
    }
    const at::Tensor log_reference = reference.LogProbabilities().to(logits_.device());
    // Summed over the vocabulary in double: single differences are around float's resolution.
    return (log_reference.exp() * (log_reference - LogProbabilities()))
        .sum(at::kDouble)
        .item<double>();
  }

 private:
  at::Tensor LogProbabilities() const {
    return log_p_.defined() ? log_p_ : at::log_softmax(logits_, -1, log_type_);
  }

  at::ScalarType log_type_;
  at::Tensor logits_;
  bool in_place_ = false;
  RowSummary summary_;
  at::Tensor log_p_;
};

}  // namespace

TargetScores ScoreTargets(const HeadRows& model, const at::Tensor& targets) {
  at::NoGradGuard no_grad;
  const int64_t count = model.rows.size(0);
  TORCH_CHECK(targets.numel() == count, "Targets of ", targets.numel(), " rows for ", count);
  TargetScores scores{at::empty({count}, at::kDouble), at::empty({count}, at::kLong)};
  const int64_t chunk = std::max<int64_t>(1, kMaxLogits / model.head.size(0));
  for (int64_t begin = 0; begin < count; begin += chunk) {
    const int64_t size = std::min(chunk, count - begin);
    const ChunkScores of_chunk(model, begin, size, /*plain=*/false);
    scores.log_probability.narrow(0, begin, size)
        .copy_(of_chunk.LogProbability(targets.narrow(0, begin, size)));
    scores.most_likely.narrow(0, begin, size).copy_(of_chunk.MostLikely());
  }
  return scores;
}

std::vector<HeadSums> SumHeads(const HeadRows* reference, const std::vector<HeadRows>& models,
                               const at::Tensor& targets, bool plain) {
  at::NoGradGuard no_grad;
  std::vector<HeadSums> sums(models.size());
  if (models.empty()) return sums;
  const int64_t count = models.front().rows.size(0);
  for (const HeadRows& model : models) {
    TORCH_CHECK(model.rows.size(0) == count, "Models differ in their number of rows");
    TORCH_CHECK(reference == nullptr || reference->head.size(0) == model.head.size(0),
                "The reference has another vocabulary");
  }
  TORCH_CHECK(reference == nullptr || reference->rows.size(0) == count,
              "The reference has another number of rows");
  TORCH_CHECK(!targets.defined() || targets.numel() == count, "Targets of ", targets.numel(),
              " rows for ", count);
  const int64_t chunk = std::max<int64_t>(1, kMaxLogits / models.front().head.size(0));
  for (int64_t begin = 0; begin < count; begin += chunk) {
    const int64_t size = std::min(chunk, count - begin);
    std::optional<ChunkScores> of_reference;
    if (reference != nullptr) of_reference.emplace(*reference, begin, size, plain);
    for (size_t i = 0; i < models.size(); ++i) {
      const ChunkScores of_model(models[i], begin, size, plain);
      if (targets.defined()) {
        sums[i].nll_sum -=
            of_model.LogProbability(targets.narrow(0, begin, size)).sum().item<double>();
      }
      if (!of_reference) continue;
      sums[i].kl_sum += of_model.Divergence(*of_reference);
      sums[i].top1_agreement_sum += of_reference->MostLikely()
                                        .to(at::kCPU)
                                        .eq(of_model.MostLikely().to(at::kCPU))
                                        .sum()
                                        .item<int64_t>();
    }
  }
  return sums;
}

}  // namespace qpruner::engine
