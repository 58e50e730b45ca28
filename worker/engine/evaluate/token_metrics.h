// How well a model predicts a text, and how far it is from a reference: perplexity and KL.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_TOKEN_METRICS_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_TOKEN_METRICS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Sums over predicted tokens. Natural logarithms.
struct TokenMetrics {
  int64_t token_count = 0;  // A window of n tokens predicts n - context.
  double nll_sum = 0;       // -log p(token)
  // Against the reference; 0 without one.
  bool has_reference = false;
  double kl_sum = 0;               // KL(reference || model) over the vocabulary
  int64_t top1_agreement_sum = 0;  // Tokens where both have the same most likely next token.

  // Of the measurement, where it was timed; else 0.
  int64_t read_tokens = 0;  // Of all windows, without padding.
  double seconds = 0;       // Wall time of forward pass and head.

  double mean_nll() const;
  double perplexity() const;      // exp(mean_nll())
  double mean_kl() const;         // nats a token; 0 where rounding leaves less
  double top1_agreement() const;  // 0 to 1
  double tokens_per_second() const;
};

// Final hidden states of the reference over the same batches, and its head.
struct ReferenceStates {
  std::vector<at::Tensor> hidden;  // As ForwardHidden returns them.
  at::Tensor head;                 // [vocab, hidden]
};

// Measures from final hidden states (ForwardHidden's, one for each of `batches`), by head_scores.h:
// full logits never exist. `reference` may be null. `plain`: by the plain reference, to check
// and to compare with. Throws c10::Error if shapes do not fit.
TokenMetrics Evaluate(const std::vector<TokenBatch>& batches, const std::vector<at::Tensor>& hidden,
                      const at::Tensor& head, const ReferenceStates* reference = nullptr,
                      bool plain = false);

// Forward and Evaluate in one.
TokenMetrics EvaluateModel(WeightSource& source, const std::vector<TokenBatch>& batches,
                           const ReferenceStates* reference = nullptr,
                           const std::function<void(int64_t block)>& on_block_done = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_TOKEN_METRICS_H_
