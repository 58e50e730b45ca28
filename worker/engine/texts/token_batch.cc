#include "worker/engine/texts/token_batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace qpruner::engine {

int64_t TokenBatch::predicted_tokens() const {
  return lengths.sum().item<int64_t>() -
         (context.defined() ? context.sum().item<int64_t>() : lengths.numel());
}

std::vector<Window> RollingWindows(const TokenIds& text, int64_t length, int64_t stride) {
  TORCH_CHECK(0 < stride && stride < length, "A stride of ", stride, " in windows of ", length);
  const auto count = static_cast<int64_t>(text.size());
  std::vector<Window> windows;
  for (int64_t done = 1, end = std::min(length, count); done < count;
       done = end, end = std::min(end + stride, count)) {
    const int64_t begin = std::max<int64_t>(0, end - length);
    windows.push_back({{text.begin() + begin, text.begin() + end}, done - begin});
  }
  return windows;
}

TokenBatch PadRows(const std::vector<TokenIds>& sequences, std::vector<int64_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  int64_t width = 0;
  for (const int64_t row : rows) {
    width = std::max(width, static_cast<int64_t>(sequences[static_cast<size_t>(row)].size()));
  }
  TokenBatch batch;
  batch.ids = at::zeros({count, width}, at::kLong);
  batch.lengths = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    const TokenIds& ids = sequences[static_cast<size_t>(rows[static_cast<size_t>(i)])];
    std::copy(ids.begin(), ids.end(), batch.ids.mutable_data_ptr<int64_t>() + i * width);
    batch.lengths.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(ids.size());
  }
  batch.rows = std::move(rows);
  return batch;
}

std::vector<TokenBatch> MakeBatches(const std::vector<TokenIds>& sequences, int64_t max_tokens) {
  std::vector<int64_t> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  const auto length_of = [&](int64_t row) {
    return static_cast<int64_t>(sequences[static_cast<size_t>(row)].size());
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return length_of(a) > length_of(b); });
  std::vector<TokenBatch> batches;
  for (size_t begin = 0; begin < order.size();) {
    // Longest first: the first row is the batch's width.
    const int64_t width = length_of(order[begin]);
    const int64_t fitting = std::max<int64_t>(1, max_tokens / std::max<int64_t>(1, width));
    const size_t end = std::min(order.size(), begin + static_cast<size_t>(fitting));
    batches.push_back(PadRows(sequences, {order.begin() + static_cast<int64_t>(begin),
                                          order.begin() + static_cast<int64_t>(end)}));
    begin = end;
  }
  return batches;
}

std::vector<TokenBatch> BatchWindows(const std::vector<Window>& windows, int64_t max_tokens) {
  std::vector<TokenIds> sequences;
  sequences.reserve(windows.size());
  for (const Window& window : windows) sequences.push_back(window.ids);
  std::vector<TokenBatch> batches = MakeBatches(sequences, max_tokens);
  for (TokenBatch& batch : batches) {
    std::vector<int64_t> context;
    for (const int64_t row : batch.rows) {
      context.push_back(windows[static_cast<size_t>(row)].context);
    }
    batch.context = at::tensor(context, at::kLong);
  }
  return batches;
}

std::vector<at::Tensor> BatchIds(const std::vector<TokenBatch>& batches) {
  std::vector<at::Tensor> ids;
  ids.reserve(batches.size());
  for (const TokenBatch& batch : batches) ids.push_back(batch.ids);
  return ids;
}

at::Tensor NextTokenTargets(const TokenBatch& batch) {
  const int64_t length = batch.ids.size(1);
  const at::Tensor next = at::roll(batch.ids, -1, 1);
  const at::Tensor position = at::arange(1, length + 1, at::kLong);
  at::Tensor predicts = position < batch.lengths.unsqueeze(1);
  if (batch.context.defined()) {
    predicts = predicts.logical_and(position >= batch.context.unsqueeze(1));
  }
  return at::where(predicts, next, at::full_like(next, kNoTarget));
}

NextTokens FindNextTokens(const TokenBatch& batch) {
  const at::Tensor targets = NextTokenTargets(batch).flatten();
  const at::Tensor rows = targets.ne(kNoTarget).nonzero().squeeze(1);
  return {rows, targets.index_select(0, rows)};
}

}  // namespace qpruner::engine
