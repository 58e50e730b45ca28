#include "worker/engine/evaluate/prefix_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>

#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/wrapped_source.h"

namespace qpruner::engine {
namespace {

// Another model in the blocks from `first` on.
class ChangedSource final : public WrappedSource {
 public:
  ChangedSource(WeightSource& base, int64_t first) : WrappedSource(base), first_(first) {}
  BlockWeights Block(int64_t block) override {
    BlockWeights weights = base().Block(block);
    if (block >= first_) weights.attention_norm = weights.attention_norm * 1.5;
    return weights;
  }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (int64_t block = 0; block < config().num_blocks(); ++block) {
      names.push_back(block >= first_ ? "changed" : "as it was");
    }
    return names;
  }

 private:
  const int64_t first_;
};

class PrefixCacheTest : public ::testing::Test {
 protected:
  PrefixCacheTest()
      : source_(MakeCheckpointSource(*Checkpoint::Open("data/models/stories260k"), at::kCPU,
                                     at::kFloat)) {
    at::manual_seed(9);
    batches_ = {at::randint(512, {2, 20}, at::kLong), at::randint(512, {1, 7}, at::kLong)};
  }
  // Of a model that is changed from `first` on: blocks that were reused.
  int64_t ExpectExact(PrefixCache& cache, int64_t first, const std::string& text = "text") {
    ChangedSource source(*source_, first);
    int64_t computed = 0;
    const auto actual =
        cache.Forward(source, batches_, text, source.names(), [&](int64_t) { ++computed; });
    const auto expected = ForwardHidden(source, batches_);
    for (size_t i = 0; i < batches_.size(); ++i) {
      EXPECT_TRUE(at::equal(actual[i], expected[i])) << first;
    }
    EXPECT_EQ(computed + cache.reused_blocks(), source.config().num_blocks());
    return cache.reused_blocks();
  }
  static constexpr int64_t kBoundaryBytes = (2 * 20 + 7) * 64 * 4;

  std::unique_ptr<WeightSource> source_;
  std::vector<at::Tensor> batches_;
};

TEST_F(PrefixCacheTest, TakesWhatIsSharedAndGivesTheSameNumbers) {
  PrefixCache cache(1 << 20);
  EXPECT_EQ(ExpectExact(cache, 3), 0);
  EXPECT_EQ(ExpectExact(cache, 2), 2);
  EXPECT_EQ(ExpectExact(cache, 0), 0);
  EXPECT_EQ(ExpectExact(cache, 4), 3);
  EXPECT_EQ(ExpectExact(cache, 4), 4) << "all but the last block, which has nothing behind it";
  EXPECT_EQ(ExpectExact(cache, 4, "another text"), 0);
  EXPECT_EQ(cache.bytes() % kBoundaryBytes, 0);
}

TEST_F(PrefixCacheTest, StaysWithinItsBytesAndKeepsTheFirstBoundaries) {
  PrefixCache cache(2 * kBoundaryBytes);
  EXPECT_EQ(ExpectExact(cache, 5), 0);
  EXPECT_EQ(cache.bytes(), 2 * kBoundaryBytes);
  EXPECT_EQ(ExpectExact(cache, 5), 2);
  EXPECT_EQ(ExpectExact(cache, 0), 0) << "drops the others, which were used longer ago";
  EXPECT_EQ(ExpectExact(cache, 0), 2);
  EXPECT_EQ(cache.bytes(), 2 * kBoundaryBytes);
  PrefixCache nothing(kBoundaryBytes - 1);
  EXPECT_EQ(ExpectExact(nothing, 5), 0);
  EXPECT_EQ(ExpectExact(nothing, 5), 0);
  EXPECT_EQ(nothing.bytes(), 0);
}

}  // namespace
}  // namespace qpruner::engine
