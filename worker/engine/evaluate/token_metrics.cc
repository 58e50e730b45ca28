#include "worker/engine/evaluate/token_metrics.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cmath>

#include "worker/engine/evaluate/head_scores.h"
#include "worker/engine/model/decoder.h"

namespace qpruner::engine {

double TokenMetrics::mean_nll() const {
  return token_count == 0 ? 0 : nll_sum / static_cast<double>(token_count);
}
double TokenMetrics::perplexity() const { return std::exp(mean_nll()); }
double TokenMetrics::mean_kl() const {
  // Each row carries the rounding of two float32 log-sum-exps, of either sign. (NaN stays NaN.)
  return token_count == 0 || kl_sum < 0 ? 0 : kl_sum / static_cast<double>(token_count);
}
double TokenMetrics::top1_agreement() const {
  return token_count == 0
             ? 0
             : static_cast<double>(top1_agreement_sum) / static_cast<double>(token_count);
}

double TokenMetrics::tokens_per_second() const {
  return seconds > 0 ? static_cast<double>(read_tokens) / seconds : 0;
}

TokenMetrics Evaluate(const std::vector<TokenBatch>& batches, const std::vector<at::Tensor>& hidden,
                      const at::Tensor& head, const ReferenceStates* reference, bool plain) {
  at::NoGradGuard no_grad;
  TORCH_CHECK(hidden.size() == batches.size(), "Hidden states of ", hidden.size(), " batches for ",
              batches.size());
  TORCH_CHECK(reference == nullptr || reference->hidden.size() == batches.size(),
              "Reference states do not belong to these batches");
  TORCH_CHECK(reference == nullptr || reference->head.size(0) == head.size(0),
              "The reference has another vocabulary");
  TokenMetrics metrics;
  metrics.has_reference = reference != nullptr;
  for (size_t i = 0; i < batches.size(); ++i) {
    const TokenBatch& batch = batches[i];
    const auto fits = [&](const at::Tensor& states) {
      return states.dim() == 3 && states.size(0) == batch.ids.size(0) &&
             states.size(1) == batch.ids.size(1);
    };
    TORCH_CHECK(fits(hidden[i]) && (reference == nullptr || fits(reference->hidden[i])),
                "Hidden states do not have the shape of batch ", i);
    const NextTokens next = FindNextTokens(batch);
    const auto predicting = [&](const at::Tensor& states, const at::Tensor& of_head) {
      return HeadRows{states.flatten(0, 1).index_select(0, next.rows.to(states.device())), of_head};
    };
    HeadRows of_reference;
    if (reference != nullptr) of_reference = predicting(reference->hidden[i], reference->head);
    const HeadSums sums = SumHeads(reference != nullptr ? &of_reference : nullptr,
                                   {predicting(hidden[i], head)}, next.targets, plain)
                              .front();
    metrics.token_count += next.rows.size(0);
    metrics.nll_sum += sums.nll_sum;
    metrics.kl_sum += sums.kl_sum;
    metrics.top1_agreement_sum += sums.top1_agreement_sum;
  }
  return metrics;
}

TokenMetrics EvaluateModel(WeightSource& source, const std::vector<TokenBatch>& batches,
                           const ReferenceStates* reference,
                           const std::function<void(int64_t block)>& on_block_done) {
  const std::vector<at::Tensor> hidden = ForwardHidden(source, BatchIds(batches), on_block_done);
  return Evaluate(batches, hidden, source.Head(), reference);
}

}  // namespace qpruner::engine
