// The log-likelihood of a continuation after a context, as lm-eval 0.4 (EleutherAI) measures it.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_LOGLIKELIHOOD_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_LOGLIKELIHOOD_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

// What the model is shown, and which of its last predictions count.
struct ContinuationRequest {
  TokenIds input;         // All tokens but the last one.
  TokenIds continuation;  // The last `continuation.size()` tokens that `input` predicts.
};

// White space at the end of the context moves to the continuation; both together are encoded, with
// the tokenizer's bos; what is longer than the encoded context is the continuation's (so a token
// that spans both belongs to neither). More than max_length + 1 tokens are cut on the left.
// INVALID_ARGUMENT: the continuation has no token of its own, or more than max_length.
absl::StatusOr<ContinuationRequest> EncodeContinuation(const Tokenizer& tokenizer,
                                                       absl::string_view context,
                                                       absl::string_view continuation,
                                                       int64_t max_length);

struct Loglikelihood {
  double nats = 0;      // Sum of ln p over the continuation's tokens.
  bool greedy = false;  // Every token is the most likely one.
};

// In the order of `requests`. Inputs are batched by length, at most `batch_tokens` tokens together
// (MakeBatches), and those that are equal computed once; they go through the model in portions
// whose hidden states take at most 512 MiB. `on_progress` takes the fraction that is done; may be
// empty. Throws c10::Error.
std::vector<Loglikelihood> MeasureLoglikelihoods(
    WeightSource& source, const std::vector<ContinuationRequest>& requests, int64_t batch_tokens,
    const std::function<void(double)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_LOGLIKELIHOOD_H_
