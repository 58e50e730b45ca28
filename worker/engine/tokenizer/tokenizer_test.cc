#include "worker/engine/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

constexpr char kModel[] = "data/models/stories260k";
constexpr int64_t kVocab = 512;

// A folder of its own for each test, holding what the test writes.
class TokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              (std::string("tokenizer_test_") + std::to_string(::getpid()) +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  // A byte-free word-level tokenizer: "a" is 0, "b" is 1, "<s>" is `bos_id`; nothing is added.
  static std::string WordLevel(int bos_id) {
    return R"({"version":"1.0","added_tokens":[{"id":)" + std::to_string(bos_id) +
           R"(,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,)"
           R"("normalized":false,"special":true}],"normalizer":null,)"
           R"("pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,)"
           R"("model":{"type":"WordLevel","vocab":{"a":0,"b":1,"<s>":)" +
           std::to_string(bos_id) + R"(},"unk_token":"a"}})";
  }

  std::filesystem::path folder_;
};

TEST_F(TokenizerTest, AgreesWithTheReferenceOnTheShippedModel) {
  auto tokenizer = Tokenizer::Open(kModel, kVocab);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 512);
  EXPECT_EQ((*tokenizer)->bos(), 1);
  EXPECT_EQ((*tokenizer)->TokenToId("<s>"), 1);
  EXPECT_EQ((*tokenizer)->TokenToId("no such token"), std::nullopt);
  // From transformers: AutoTokenizer.from_pretrained(...)("Once upon a time, é!").input_ids
  const TokenIds expected = {1, 403, 407, 261, 378, 432, 410, 485, 443};
  const std::string text = "Once upon a time, \xC3\xA9!";
  auto ids = (*tokenizer)->EncodeDocument(text);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, expected);
  auto plain = (*tokenizer)->Encode(text);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(*plain, TokenIds(expected.begin() + 1, expected.end()));
  auto back = (*tokenizer)->Decode(*ids);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, text);
}

TEST_F(TokenizerTest, TakesThreads) {
  auto tokenizer = Tokenizer::Open(kModel, kVocab);
  ASSERT_TRUE(tokenizer.ok());
  const TokenIds expected = *(*tokenizer)->Encode("One day, a girl saw a big dog.");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 50; ++k) {
        auto ids = (*tokenizer)->Encode("One day, a girl saw a big dog.");
        EXPECT_TRUE(ids.ok() && *ids == expected);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(TokenizerTest, RefusesIdsBeyondTheModel) {
  auto tokenizer = Tokenizer::Open(kModel, 511);
  ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              HasSubstr("it can give id 511, but the model's vocab_size is 511"));
  // Ids may have holes: few tokens, one of them far out.
  Write("tokenizer.json", WordLevel(99));
  EXPECT_FALSE(Tokenizer::Open(folder_, 99).ok());
  EXPECT_TRUE(Tokenizer::Open(folder_, 100).ok());
}

TEST_F(TokenizerTest, RefusesWhatIsNoTokenizer) {
  EXPECT_EQ(Tokenizer::Open(folder_, kVocab).status().code(), absl::StatusCode::kNotFound);
  for (const char* json : {"", "{}", "[1", R"({"version":"1.0","model":{"type":"Nothing"}})"}) {
    Write("tokenizer.json", json);
    auto tokenizer = Tokenizer::Open(folder_, kVocab);
    ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("Not a usable tokenizer"));
  }
}

TEST_F(TokenizerTest, RefusesTextThatIsNotUtf8) {
  auto tokenizer = Tokenizer::Open(kModel, kVocab);
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->Encode("\xFF").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*tokenizer)->Decode({-1}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TokenizerTest, TakesBosFromTheConfigWhereTheTokenizerAddsNone) {
  Write("tokenizer.json", WordLevel(2));
  const auto bos = [&]() -> std::optional<int32_t> {
    auto tokenizer = Tokenizer::Open(folder_, kVocab);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? (*tokenizer)->bos() : std::nullopt;
  };
  EXPECT_EQ(bos(), std::nullopt);
  Write("tokenizer_config.json", R"({"bos_token":"<s>"})");
  EXPECT_EQ(bos(), std::nullopt);
  Write("tokenizer_config.json", R"({"bos_token":"<s>","add_bos_token":true})");
  EXPECT_EQ(bos(), 2);
  Write("tokenizer_config.json",
        R"({"bos_token":{"content":"<s>"},"tokenizer_class":"LlamaTokenizerFast"})");
  EXPECT_EQ(bos(), 2);
  Write("tokenizer_config.json",
        R"({"bos_token":"<s>","add_bos_token":false,"tokenizer_class":"LlamaTokenizerFast"})");
  EXPECT_EQ(bos(), std::nullopt);
  Write("tokenizer_config.json", R"({"bos_token":"<x>","add_bos_token":true})");
  EXPECT_FALSE(Tokenizer::Open(folder_, kVocab).ok());
}

}  // namespace
}  // namespace qpruner::engine
