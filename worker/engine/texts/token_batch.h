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
  // [batch] int64 on the CPU: tokens at the start of each row that are read and not predicted, at
  // least 1. Undefined: 1 of each.
  at::Tensor context;

  // Sum of length - context.
  int64_t predicted_tokens() const;
};

// A piece of a text that is read at once; the first `context` tokens are predicted elsewhere, or
// start the text.
struct Window {
  TokenIds ids;
  int64_t context = 1;

  bool operator==(const Window&) const = default;
};

// A text in windows of `length` tokens, the last ones of which begin where they end with the text:
// every token but the first is predicted in exactly one, `stride` of them in each window but the
// first, behind at least `length` - `stride` tokens (or all there are). Needs 0 < stride < length.
// These are the windows of lm-eval's loglikelihood_rolling (get_rolling_token_windows) with
// max_seq_len = length - 1 and context_len = length - stride. A text of one token has none.
std::vector<Window> RollingWindows(const TokenIds& text, int64_t length, int64_t stride);

// Sequences of similar length side by side, longest first, at most `max_tokens` tokens a batch with
// its padding (a longer sequence is a batch of its own). Each row is independent of its neighbours:
// attention is causal and padding is on the right.
std::vector<TokenBatch> MakeBatches(const std::vector<TokenIds>& sequences,
                                    int64_t max_tokens = 4096);

// The same, with their context.
std::vector<TokenBatch> BatchWindows(const std::vector<Window>& windows, int64_t max_tokens = 4096);

// The given rows of `sequences` as one batch, in this order.
TokenBatch PadRows(const std::vector<TokenIds>& sequences, std::vector<int64_t> rows);

// The ids alone, as ForwardHidden takes them.
std::vector<at::Tensor> BatchIds(const std::vector<TokenBatch>& batches);

// In targets: nothing is predicted here.
inline constexpr int64_t kNoTarget = -100;

// The next token of each position [batch, length] int64 CPU; kNoTarget where it is context, at a
// sequence's last token and on padding.
at::Tensor NextTokenTargets(const TokenBatch& batch);

// The positions that predict, and what follows them.
struct NextTokens {
  at::Tensor rows;     // [predictions] int64 CPU, into [batch * length]
  at::Tensor targets;  // [predictions] int64 CPU
};
NextTokens FindNextTokens(const TokenBatch& batch);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TEXTS_TOKEN_BATCH_H_
