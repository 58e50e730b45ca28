// What a head says of the token that follows, from final hidden states.
//
// The head is applied to a few rows at a time on its own device, so the logits of a whole text
// never exist at once.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_HEAD_SCORES_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_HEAD_SCORES_H_

#include <ATen/core/Tensor.h>

namespace qpruner::engine {

struct TargetScores {
  at::Tensor log_probability;  // [rows] float64 CPU: ln p(target)
  at::Tensor most_likely;      // [rows] int64 CPU: the token with the largest logit
};

// rows [rows, hidden] (any device and dtype), head [vocab, hidden], targets [rows] int64 CPU.
// Log-probabilities are computed in float32 from logits in the head's dtype.
TargetScores ScoreTargets(const at::Tensor& rows, const at::Tensor& head,
                          const at::Tensor& targets);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_HEAD_SCORES_H_
