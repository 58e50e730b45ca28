// What a head says of the token that follows, from final hidden states.
//
// The head is applied to a few rows at a time on its own device, so the logits of a whole text
// never exist at once. On the CPU, float32 and bfloat16 logits are read in place (logit_rows.h);
// elsewhere, and for other types, by LibTorch's log_softmax in float32. The plain reference is
// log_softmax in float64.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_HEAD_SCORES_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_HEAD_SCORES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace qpruner::engine {

// Final hidden states [rows, hidden] on any device, in the dtype that logits are computed in, and
// the head [vocab, hidden] to apply, of any dtype (HeadLogits, decoder.h).
struct HeadRows {
  at::Tensor rows;
  at::Tensor head;
};

struct TargetScores {
  at::Tensor log_probability;  // [rows] float64 CPU: ln p(target)
  at::Tensor most_likely;      // [rows] int64 CPU: the token with the largest logit
};

// targets [rows] int64 CPU. Log-probabilities are computed from logits in the rows' dtype. Throws
// c10::Error if shapes do not fit; so does SumHeads.
TargetScores ScoreTargets(const HeadRows& model, const at::Tensor& targets);

// Sums over rows. Natural logarithms.
struct HeadSums {
  double nll_sum = 0;              // -ln p(target)
  double kl_sum = 0;               // KL(reference || model) over the vocabulary
  int64_t top1_agreement_sum = 0;  // Rows where both have the same most likely token.
};

// For each of `models`, which have the same number of rows. Without `reference` (null) its sums are
// 0; the reference's logits are computed once for all models. `targets` [rows] int64 CPU;
// undefined: no nll. `plain`: by the plain reference.
std::vector<HeadSums> SumHeads(const HeadRows* reference, const std::vector<HeadRows>& models,
                               const at::Tensor& targets, bool plain = false);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_HEAD_SCORES_H_
