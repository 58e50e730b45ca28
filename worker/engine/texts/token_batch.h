// Sequences of different lengths, grouped for the forward pass.
#ifndef QPRUNER_WORKER_ENGINE_TEXTS_TOKEN_BATCH_H_
#define QPRUNER_WORKER_ENGINE_TEXTS_TOKEN_BATCH_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

struct TokenBatch {
  at::Tensor ids;             // [batch, length] int64 on the CPU, padded on the right with 0.
  at::Tensor lengths;         // [batch] int64 on the CPU, true length of each row.
  std::vector<int64_t> rows;  // Position of each row among the sequences given.

  // Sum of length - 1.
  int64_t predicted_tokens() const;
};

// Sequences of similar length side by side, longest first, at most `max_tokens` tokens a batch with
// its padding (a longer sequence is a batch of its own). Each row is independent of its neighbours:
// attention is causal and padding is on the right.
std::vector<TokenBatch> MakeBatches(const std::vector<TokenIds>& sequences,
                                    int64_t max_tokens = 4096);

// The given rows of `sequences` as one batch, in this order.
TokenBatch PadRows(const std::vector<TokenIds>& sequences, std::vector<int64_t> rows);

// The ids alone, as ForwardHidden takes them.
std::vector<at::Tensor> BatchIds(const std::vector<TokenBatch>& batches);

// In targets: nothing is predicted here.
inline constexpr int64_t kNoTarget = -100;

// The next token of each position [batch, length] int64 CPU; kNoTarget at a sequence's last token
// and on padding.
at::Tensor NextTokenTargets(const TokenBatch& batch);

// The positions that predict, and what follows them.
struct NextTokens {
  at::Tensor rows;     // [predictions] int64 CPU, into [batch * length]
  at::Tensor targets;  // [predictions] int64 CPU
};
NextTokens FindNextTokens(const TokenBatch& batch);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TEXTS_TOKEN_BATCH_H_
