// Passes over rows of logits that never write log-probabilities down.
//
// A row of a real vocabulary does not fit the fastest cache, so what counts is how often it is read
// and that nothing is written: twice and nothing here, against a float32 copy of all logits and
// several passes for log_softmax. CPU, contiguous float32 or bfloat16; exponentials and terms in
// float32, sums over parts of a row and what is common to a row in double.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_LOGIT_ROWS_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_LOGIT_ROWS_H_

#include <ATen/core/Tensor.h>

namespace qpruner::engine {

struct RowSummary {
  at::Tensor log_sum_exp;  // [rows] float64: ln sum exp(logit)
  at::Tensor most_likely;  // [rows] int64: the first of the largest
};

// logits [rows, vocab]
RowSummary SummarizeRows(const at::Tensor& logits);

// KL(reference || model) of each row in nats, [rows] float64. Exactly 0 for equal logits.
at::Tensor DivergeRows(const at::Tensor& reference, const at::Tensor& reference_log_sum_exp,
                       const at::Tensor& logits, const at::Tensor& log_sum_exp);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_LOGIT_ROWS_H_
