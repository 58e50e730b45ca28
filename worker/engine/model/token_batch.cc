#include "worker/engine/model/token_batch.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace qpruner::engine {

int64_t TokenBatch::predicted_count() const { return targets.ne(kNoTarget).sum().item<int64_t>(); }

TokenBatch MakeTokenBatch(const std::vector<std::vector<int64_t>>& sequences) {
  TokenBatch batch;
  int64_t longest = 0;
  for (const auto& sequence : sequences) {
    batch.lengths.push_back(static_cast<int64_t>(sequence.size()));
    longest = std::max(longest, batch.lengths.back());
  }
  const auto rows = static_cast<int64_t>(sequences.size());
  batch.ids = at::zeros({rows, longest}, at::kLong);
  batch.targets = at::full({rows, longest}, TokenBatch::kNoTarget, at::kLong);
  auto ids = batch.ids.accessor<int64_t, 2>();
  auto targets = batch.targets.accessor<int64_t, 2>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t t = 0; t < batch.lengths[row]; ++t) {
      ids[row][t] = sequences[row][t];
      if (t > 0) targets[row][t - 1] = sequences[row][t];
    }
  }
  return batch;
}

std::vector<TokenBatch> MakeTokenBatches(const std::vector<std::vector<int64_t>>& sequences,
                                         int64_t batch_size) {
  std::vector<TokenBatch> batches;
  for (auto first = sequences.begin(); first != sequences.end();) {
    const auto last = first + std::min<int64_t>(batch_size, sequences.end() - first);
    batches.push_back(MakeTokenBatch({first, last}));
    first = last;
  }
  return batches;
}

}  // namespace qpruner::engine
