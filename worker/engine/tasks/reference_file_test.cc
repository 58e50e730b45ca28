#include "worker/engine/tasks/reference_file.h"

#include <ATen/ATen.h>
#include <stdlib.h>

#include <filesystem>

#include "gtest/gtest.h"
#include "worker/engine/formats/safetensors_writer.h"

namespace qpruner::engine {
namespace {

class ReferenceFileTest : public ::testing::Test {
 protected:
  ReferenceFileTest() {
    char pattern[] = "/tmp/qpruner_reference_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    path_ = folder_ + "/reference.safetensors";
  }
  ~ReferenceFileTest() override { std::filesystem::remove_all(folder_); }

  // States that tell sequence, position and channel: 100 s + 10 p + c.
  static ReferenceShare Share(std::vector<Window> windows) {
    ReferenceShare share;
    share.windows = std::move(windows);
    share.batches = BatchWindows(share.windows, /*max_tokens=*/8);
    for (const TokenBatch& batch : share.batches) {
      at::Tensor hidden = at::full({batch.ids.size(0), batch.ids.size(1), 3}, -1.0, at::kFloat);
      for (size_t row = 0; row < batch.rows.size(); ++row) {
        const int64_t sequence = batch.rows[row];
        const auto length =
            static_cast<int64_t>(share.windows[static_cast<size_t>(sequence)].ids.size());
        for (int64_t position = 0; position < length; ++position) {
          for (int64_t channel = 0; channel < 3; ++channel) {
            hidden[static_cast<int64_t>(row)][position][channel] =
                static_cast<double>(100 * sequence + 10 * position + channel);
          }
        }
      }
      share.hidden.push_back(hidden);
    }
    return share;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(ReferenceFileTest, ComesBackWithEveryStateAtItsToken) {
  Reference reference;
  reference.selection = Share({{{1, 2, 3}}, {{4, 5, 6, 7, 8}, 3}, {{9, 10}}});
  reference.test = Share({{{11, 12}}});
  reference.fine_tune = {{{13}, 0}, {{14, 15, 16}, 2}};
  reference.longest_sequence = 17;
  ASSERT_TRUE(WriteReference(path_, reference).ok());
  const auto read = ReadReference(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->selection.windows, reference.selection.windows);
  EXPECT_EQ(read->test.windows, reference.test.windows);
  EXPECT_EQ(read->fine_tune, reference.fine_tune);
  EXPECT_EQ(read->longest_sequence, 17);
  EXPECT_EQ(*ReadLongestSequence(path_), 17);
  int64_t seen = 0;
  for (size_t i = 0; i < read->selection.batches.size(); ++i) {
    const TokenBatch& batch = read->selection.batches[i];
    for (size_t row = 0; row < batch.rows.size(); ++row) {
      const int64_t sequence = batch.rows[row];
      const auto& ids = read->selection.windows[static_cast<size_t>(sequence)].ids;
      for (size_t position = 0; position < ids.size(); ++position, ++seen) {
        EXPECT_EQ(
            read->selection.hidden[i][static_cast<int64_t>(row)][static_cast<int64_t>(position)][2]
                .item<float>(),
            static_cast<float>(100 * sequence + 10 * static_cast<int64_t>(position) + 2));
      }
    }
  }
  EXPECT_EQ(seen, 10);
}

TEST_F(ReferenceFileTest, WithoutFineTuningTextThereIsNone) {
  Reference reference;
  reference.selection = Share({{{1, 2}}});
  reference.test = Share({{{3, 4}}});
  ASSERT_TRUE(WriteReference(path_, reference).ok());
  const auto read = ReadReference(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->fine_tune.empty());
}

TEST_F(ReferenceFileTest, RefusesAnotherFile) {
  ASSERT_TRUE(
      WriteSafetensors(path_, {{"weight", DType::kU8, {1}, [] { return std::string("x"); }}}, {})
          .ok());
  EXPECT_EQ(ReadReference(path_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qpruner::engine
