#include "worker/engine/texts/token_batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace qpruner::engine {
namespace {

TEST(TokenBatchTest, KeepsEverySequenceOnceWithinTheBound) {
  std::vector<TokenIds> sequences;
  for (int length : {3, 8, 1, 5, 5, 20, 2, 8}) {
    TokenIds ids;
    for (int i = 0; i < length; ++i) ids.push_back(100 * length + i);
    sequences.push_back(ids);
  }
  const std::vector<TokenBatch> batches = MakeBatches(sequences, 16);
  std::vector<int64_t> seen;
  int64_t predicted = 0;
  for (const TokenBatch& batch : batches) {
    ASSERT_EQ(batch.ids.size(0), static_cast<int64_t>(batch.rows.size()));
    EXPECT_TRUE(batch.ids.numel() <= 16 || batch.ids.size(0) == 1);
    predicted += batch.predicted_tokens();
    for (size_t i = 0; i < batch.rows.size(); ++i) {
      const TokenIds& expected = sequences[static_cast<size_t>(batch.rows[i])];
      const auto row = static_cast<int64_t>(i);
      ASSERT_EQ(batch.lengths[row].item<int64_t>(), static_cast<int64_t>(expected.size()));
      for (int64_t t = 0; t < batch.ids.size(1); ++t) {
        const bool real = t < static_cast<int64_t>(expected.size());
        EXPECT_EQ(batch.ids[row][t].item<int64_t>(), real ? expected[static_cast<size_t>(t)] : 0);
      }
      seen.push_back(batch.rows[i]);
    }
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(predicted, 52 - 8);
  // 20 alone; 8 + 8; 5 + 5 + 3; 2 + 1.
  EXPECT_EQ(batches.size(), 4u);
}

TEST(TokenBatchTest, ContextIsReadAndNotPredicted) {
  const std::vector<TokenBatch> batches =
      BatchWindows({{{1, 2, 3, 4}, 1}, {{3, 4, 5, 6, 7}, 3}}, 100);
  ASSERT_EQ(batches.size(), 1u);
  EXPECT_EQ(batches[0].predicted_tokens(), 5);
  const NextTokens next = FindNextTokens(batches[0]);  // Longest first.
  EXPECT_TRUE(at::equal(next.targets, at::tensor({6, 7, 2, 3, 4}, at::kLong)));
  EXPECT_TRUE(at::equal(next.rows, at::tensor({2, 3, 5, 6, 7}, at::kLong)));
}

TEST(RollingWindowsTest, PredictEveryTokenOnceBehindEnoughContext) {
  for (int64_t count = 0; count < 30; ++count) {
    TokenIds text;
    for (int32_t i = 0; i < count; ++i) text.push_back(100 + i);
    for (const auto& [length, stride] : {std::pair{8, 7}, {8, 4}, {8, 1}, {2, 1}, {40, 3}}) {
      int64_t predicted = 1;
      for (const Window& window : RollingWindows(text, length, stride)) {
        const auto size = static_cast<int64_t>(window.ids.size());
        ASSERT_LE(size, length);
        ASSERT_EQ(window.ids[static_cast<size_t>(window.context)], 100 + predicted);
        EXPECT_GE(window.context, std::min<int64_t>(predicted, length - stride));
        EXPECT_EQ(window.ids.back(), window.ids.front() + size - 1);
        predicted += size - window.context;
      }
      EXPECT_EQ(predicted, std::max<int64_t>(count, 1)) << count << " " << length << " " << stride;
    }
  }
  EXPECT_ANY_THROW(RollingWindows({1, 2, 3}, 4, 4));
}

TEST(TokenBatchTest, TakesNothing) { EXPECT_TRUE(MakeBatches({}).empty()); }

}  // namespace
}  // namespace qpruner::engine
