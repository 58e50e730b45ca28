#include "worker/engine/evaluate/token_metrics.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "worker/engine/model/decoder.h"

namespace qpruner::engine {
namespace {

// Logits that exist at once, in elements: 64 MiB in float32, for the model and again for the
// reference.
constexpr int64_t kMaxLogits = int64_t{16} << 20;

// The predicting positions of one batch.
struct Positions {
  at::Tensor index;   // Into [batch * length] rows of hidden states.
  at::Tensor target;  // The id that follows.
};

Positions FindPositions(const TokenBatch& batch) {
  const int64_t width = batch.ids.size(1);
  const at::Tensor column = at::arange(width, at::kLong);
  const at::Tensor predicts = column.unsqueeze(0) < (batch.lengths - 1).unsqueeze(1);
  const at::Tensor index = predicts.flatten().nonzero().squeeze(1);
  return {index, batch.ids.flatten().index_select(0, index + 1)};
}

at::Tensor LogProbabilities(const at::Tensor& hidden, const at::Tensor& index,
                            const at::Tensor& head) {
  const at::Tensor rows = hidden.flatten(0, 1)
                              .index_select(0, index.to(hidden.device()))
                              .to(head.device(), head.scalar_type());
  return at::log_softmax(at::linear(rows, head), -1, at::kFloat);
}

}  // namespace

double TokenMetrics::mean_nll() const {
  return token_count == 0 ? 0 : nll_sum / static_cast<double>(token_count);
}
double TokenMetrics::perplexity() const { return std::exp(mean_nll()); }
double TokenMetrics::mean_kl() const {
  return token_count == 0 ? 0 : kl_sum / static_cast<double>(token_count);
}
double TokenMetrics::top1_agreement() const {
  return token_count == 0
             ? 0
             : static_cast<double>(top1_agreement_sum) / static_cast<double>(token_count);
}

TokenMetrics Evaluate(const std::vector<TokenBatch>& batches, const std::vector<at::Tensor>& hidden,
                      const at::Tensor& head, const ReferenceStates* reference) {
  at::NoGradGuard no_grad;
  TORCH_CHECK(hidden.size() == batches.size(), "Hidden states of ", hidden.size(), " batches for ",
              batches.size());
  TORCH_CHECK(reference == nullptr || reference->hidden.size() == batches.size(),
              "Reference states do not belong to these batches");
  TORCH_CHECK(reference == nullptr || reference->head.size(0) == head.size(0),
              "The reference has another vocabulary");
  TokenMetrics metrics;
  metrics.has_reference = reference != nullptr;
  const int64_t chunk = std::max<int64_t>(1, kMaxLogits / head.size(0));
  for (size_t i = 0; i < batches.size(); ++i) {
    const TokenBatch& batch = batches[i];
    const auto fits = [&](const at::Tensor& states) {
      return states.dim() == 3 && states.size(0) == batch.ids.size(0) &&
             states.size(1) == batch.ids.size(1);
    };
    TORCH_CHECK(fits(hidden[i]) && (reference == nullptr || fits(reference->hidden[i])),
                "Hidden states do not have the shape of batch ", i);
    const Positions positions = FindPositions(batch);
    const int64_t count = positions.index.size(0);
    metrics.token_count += count;
    for (int64_t begin = 0; begin < count; begin += chunk) {
      const int64_t size = std::min(chunk, count - begin);
      const at::Tensor index = positions.index.narrow(0, begin, size);
      const at::Tensor target = positions.target.narrow(0, begin, size).to(head.device());
      const at::Tensor log_p = LogProbabilities(hidden[i], index, head);
      metrics.nll_sum -= log_p.gather(1, target.unsqueeze(1)).sum(at::kDouble).item<double>();
      if (reference == nullptr) continue;
      const at::Tensor log_reference =
          LogProbabilities(reference->hidden[i], index, reference->head).to(head.device());
      // Summed over the vocabulary in double: single differences are around float's resolution.
      metrics.kl_sum +=
          (log_reference.exp() * (log_reference - log_p)).sum(at::kDouble).item<double>();
      metrics.top1_agreement_sum +=
          (log_reference.argmax(-1) == log_p.argmax(-1)).sum().item<int64_t>();
    }
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
