#include "worker/engine/texts/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A token for each byte; bos is 256.
class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() { bos_ = 256; }
  absl::StatusOr<TokenIds> Encode(absl::string_view text) const override {
    TokenIds ids;
    for (unsigned char byte : text) ids.push_back(byte);
    return ids;
  }
  absl::StatusOr<std::string> Decode(const TokenIds& ids) const override {
    std::string text;
    for (int32_t id : ids) {
      if (id < 256) text.push_back(static_cast<char>(id));
    }
    return text;
  }
  std::optional<int32_t> TokenToId(absl::string_view) const override { return std::nullopt; }
  int64_t vocab_size() const override { return 257; }
};

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            absl::StrCat("dataset_test_", ::getpid(), "_",
                         ::testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void Write(absl::string_view text) {
    std::ofstream(path_, std::ios::binary) << std::string(text);
  }
  std::unique_ptr<Dataset> Open(const std::string& separator = "<|endoftext|>",
                                int64_t window_length = 512) {
    auto dataset = Dataset::Open({path_, separator, window_length}, tokenizer_);
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return dataset.ok() ? *std::move(dataset) : nullptr;
  }
  absl::Status OpenError(const std::string& separator = "<|endoftext|>",
                         int64_t window_length = 512) {
    return Dataset::Open({path_, separator, window_length}, tokenizer_).status();
  }
  std::vector<std::string> Texts(const std::vector<TokenIds>& sequences) {
    std::vector<std::string> texts;
    for (const TokenIds& ids : sequences) texts.push_back(*tokenizer_.Decode(ids));
    return texts;
  }

  ByteTokenizer tokenizer_;
  std::string path_;
};

// "d00", "d01", ...
std::string NumberedDocuments(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "\n d", i < 10 ? "0" : "", i, " \n<|endoftext|>");
  }
  return text;
}

TEST(SplitDocumentsTest, StripsAndDropsEmptyOnes) {
  EXPECT_THAT(SplitDocuments(" a b \n|\t|c||  d", "|"), ElementsAre("a b", "c", "d"));
  EXPECT_THAT(SplitDocuments(" a|b ", ""), ElementsAre("a|b"));
  EXPECT_THAT(SplitDocuments(" | ", "|"), ElementsAre());
}

TEST_F(DatasetTest, DealsDocumentsByPosition) {
  Write(NumberedDocuments(20));
  auto dataset = Open();
  ASSERT_NE(dataset, nullptr);
  std::vector<std::string> all;
  const std::pair<Share, size_t> shares[] = {
      {Share::kCalibration, 2}, {Share::kFineTune, 11}, {Share::kSelection, 3}, {Share::kTest, 4}};
  for (const auto& [share, count] : shares) {
    EXPECT_EQ(dataset->document_count(share), static_cast<int64_t>(count));
    auto documents = dataset->Documents(share, 512, 0);
    ASSERT_TRUE(documents.ok()) << documents.status();
    EXPECT_EQ(documents->size(), count);
    for (const TokenIds& ids : *documents) EXPECT_EQ(ids.front(), 256);
    for (std::string& text : Texts(*documents)) all.push_back(std::move(text));
  }
  ASSERT_EQ(all.size(), 20u);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i], absl::StrCat("d", i < 10 ? "0" : "", i));
  }
}

TEST_F(DatasetTest, CutsToTheLengthAndTheNumberOfTokens) {
  Write(NumberedDocuments(20));
  auto dataset = Open();
  ASSERT_NE(dataset, nullptr);
  auto cut = dataset->Documents(Share::kFineTune, 3, 0);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->at(0), (TokenIds{256, 'd', '0'}));
  // Three predicted tokens each: the second document is cut so that five come together.
  auto bounded = dataset->Documents(Share::kFineTune, 512, 5);
  ASSERT_TRUE(bounded.ok());
  EXPECT_THAT(Texts(*bounded), ElementsAre("d02", "d0"));
  auto too_many = dataset->Documents(Share::kFineTune, 512, 0, 34);
  EXPECT_EQ(too_many.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_many.status().message()),
              HasSubstr("33 predicted tokens in sequences of at most 512 for fine-tuning (11 of "
                        "its 20 documents); 34 are needed"));
}

TEST_F(DatasetTest, SamplesAreDisjointAndRepeatable) {
  std::string text;
  for (int i = 0; i < 50; ++i) {
    for (int k = 0; k < 10; ++k) text.push_back(static_cast<char>('a' + (i * 10 + k) % 26));
    absl::StrAppend(&text, i, "|");
  }
  Write(text);
  auto dataset = Open("|");
  ASSERT_NE(dataset, nullptr);
  // Five documents of 11 bytes: two pieces of five bytes each, behind a bos.
  auto samples = dataset->Samples(Share::kCalibration, 10, 6, 42);
  ASSERT_TRUE(samples.ok()) << samples.status();
  std::set<TokenIds> different(samples->begin(), samples->end());
  EXPECT_EQ(different.size(), 10u);
  for (const TokenIds& sample : *samples) {
    EXPECT_EQ(sample.size(), 6u);
    EXPECT_EQ(sample.front(), 256);
  }
  EXPECT_EQ(*dataset->Samples(Share::kCalibration, 10, 6, 42), *samples);
  EXPECT_NE(*dataset->Samples(Share::kCalibration, 10, 6, 43), *samples);
  auto fewer = dataset->Samples(Share::kCalibration, 4, 6, 42);
  EXPECT_TRUE(std::equal(fewer->begin(), fewer->end(), samples->begin()));
  auto more = dataset->Samples(Share::kCalibration, 11, 6, 42);
  EXPECT_THAT(std::string(more.status().message()),
              HasSubstr("10 samples of 6 tokens for calibration (5 of its 50 documents); 11 are "
                        "needed"));
}

TEST_F(DatasetTest, CutsWindowsWithoutSeparator) {
  std::string text;
  for (int i = 0; i < 83; ++i) text.push_back(static_cast<char>(' ' + i));
  Write(text);
  auto dataset = Open("", 4);
  ASSERT_NE(dataset, nullptr);
  EXPECT_EQ(dataset->document_count(Share::kFineTune), 11);
  auto calibration = dataset->Documents(Share::kCalibration, 512, 0);
  ASSERT_TRUE(calibration.ok());
  EXPECT_EQ(*calibration, (std::vector<TokenIds>{{32, 33, 34, 35}, {36, 37, 38, 39}}));
  auto test = dataset->Documents(Share::kTest, 512, 0);
  ASSERT_TRUE(test.ok());
  EXPECT_EQ(test->back(), (TokenIds{108, 109, 110, 111}));
}

TEST_F(DatasetTest, WindowsRollOverWholeDocuments) {
  Write(NumberedDocuments(20));
  auto dataset = Open();
  ASSERT_NE(dataset, nullptr);
  const auto windows = [&](int64_t length, int64_t stride, int64_t most) {
    auto found = dataset->Windows(Share::kTest, length, stride, most);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *std::move(found) : std::vector<Window>();
  };
  // A stride of the window's length: what Documents gives.
  EXPECT_EQ(windows(3, 3, 3), (std::vector<Window>{{{256, 'd', '1'}, 1}, {{256, 'd'}, 1}}));
  EXPECT_EQ(windows(3, 1, 4),
            (std::vector<Window>{{{256, 'd', '1'}, 1}, {{'d', '1', '6'}, 2}, {{256, 'd'}, 1}}));
  EXPECT_EQ(windows(3, 2, 0).size(), 8u);
  EXPECT_EQ(dataset->Windows(Share::kTest, 3, 0, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(dataset->Windows(Share::kTest, 3, 2, 0, 13).status().message()),
              HasSubstr("12 predicted tokens"));

  std::string text;
  for (int i = 0; i < 83; ++i) text.push_back(static_cast<char>(' ' + i));
  Write(text);
  dataset = Open("", 4);
  ASSERT_NE(dataset, nullptr);
  // The share as one text: 16 tokens from 96 on, of which all but the first are predicted.
  const std::vector<Window> all = windows(4, 2, 0);
  ASSERT_EQ(all.size(), 7u);
  EXPECT_EQ(all[1], (Window{{98, 99, 100, 101}, 2}));
  EXPECT_EQ(all.back(), (Window{{108, 109, 110, 111}, 2}));
}

TEST_F(DatasetTest, RefusesBadFiles) {
  EXPECT_EQ(OpenError().code(), absl::StatusCode::kNotFound);
  Write("");
  EXPECT_THAT(std::string(OpenError().message()), HasSubstr("empty"));
  Write("good \xFF");
  EXPECT_THAT(std::string(OpenError().message()), HasSubstr("not UTF-8"));
  EXPECT_THAT(std::string(OpenError().message()), HasSubstr("byte 5"));
  Write(NumberedDocuments(9));
  EXPECT_THAT(std::string(OpenError().message()),
              HasSubstr("has 9 documents (separator \"<|endoftext|>\"), which leaves none for "
                        "calibration; 10 are needed"));
  Write("only a few words");
  EXPECT_THAT(std::string(OpenError("", 4).message()),
              HasSubstr("has 4 windows of 4 tokens (16 tokens)"));
  std::filesystem::resize_file(path_, (uint64_t{4} << 30) + 1);  // Sparse.
  EXPECT_THAT(std::string(OpenError().message()), HasSubstr("Text too large"));
}

}  // namespace
}  // namespace qpruner::engine
