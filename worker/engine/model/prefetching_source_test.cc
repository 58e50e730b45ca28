#include "worker/engine/model/prefetching_source.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <utility>
#include <vector>

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;

// Blocks that carry their number, and a record of what was asked for.
class CountingSource final : public WeightSource {
 public:
  explicit CountingSource(std::vector<int64_t>& asked) : asked_(asked) { config_.blocks.resize(4); }
  const ModelConfig& config() const override { return config_; }
  at::Device device() const override { return at::kCPU; }
  at::ScalarType dtype() const override { return at::kFloat; }
  BlockWeights Block(int64_t block) override {
    TORCH_CHECK(block != 3 || !broken, "broken");
    EXPECT_FALSE(busy_.exchange(true));
    asked_.push_back(block);
    BlockWeights weights;
    weights.attention_norm = at::full({1}, block, at::kFloat);
    busy_ = false;
    return weights;
  }
  at::Tensor Embedding() override { return Rest(); }
  at::Tensor FinalNorm() override { return Rest(); }
  at::Tensor Head() override { return Rest(); }

  bool broken = false;

 private:
  at::Tensor Rest() {
    EXPECT_FALSE(busy_);
    return at::ones({1});
  }

  ModelConfig config_;
  std::vector<int64_t>& asked_;
  std::atomic<bool> busy_ = false;
};

TEST(PrefetchingSourceTest, GoesUpAndDownWithEachBlockLoadedOnceAWalk) {
  std::vector<int64_t> asked;
  {
    PrefetchingSource source(std::make_unique<CountingSource>(asked));
    const auto expect = [&](int64_t block) {
      EXPECT_EQ(source.Block(block).attention_norm.item<float>(), block);
    };
    for (const int64_t block : {0, 1, 2, 3}) expect(block);
    EXPECT_EQ(source.Head().item<float>(), 1);
    for (const int64_t block : {3, 2, 1, 0}) expect(block);
  }
  EXPECT_THAT(asked, ElementsAre(0, 1, 2, 3, 3, 2, 1, 0));
}

TEST(PrefetchingSourceTest, AnyOrderGivesTheRightBlock) {
  std::vector<int64_t> asked;
  PrefetchingSource source(std::make_unique<CountingSource>(asked));
  for (const int64_t block : {2, 0, 3, 3, 1, 1, 0}) {
    EXPECT_EQ(source.Block(block).attention_norm.item<float>(), block);
  }
}

TEST(PrefetchingSourceTest, PartsOfBlocksAreNotLoadedAhead) {
  std::vector<int64_t> asked;
  {
    PrefetchingSource source(std::make_unique<CountingSource>(asked));
    EXPECT_EQ(source.Block(0).attention_norm.item<float>(), 0);
    for (const int64_t block : {1, 2}) {
      EXPECT_EQ(source.BlockWith({}, block).attention_norm.item<float>(), block);
    }
    EXPECT_EQ(source.BlockWith(AllLinears(), 3).attention_norm.item<float>(), 3);
  }
  // 1 was on its way when only a part of it was wanted.
  EXPECT_THAT(asked, ElementsAre(0, 1, 1, 2, 3));
}

TEST(PrefetchingSourceTest, AFailureIsThrownWhereTheBlockIsAskedFor) {
  std::vector<int64_t> asked;
  auto base = std::make_unique<CountingSource>(asked);
  base->broken = true;
  PrefetchingSource source(std::move(base));
  EXPECT_EQ(source.Block(2).attention_norm.item<float>(), 2);
  EXPECT_THROW(source.Block(3), c10::Error);
}

}  // namespace
}  // namespace qpruner::engine
