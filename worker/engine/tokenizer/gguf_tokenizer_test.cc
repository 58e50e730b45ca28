// Tokenizers rebuilt from GGUF metadata against Hugging Face's own definitions of them:
// tests/compat/gguf_tokenizer_golden.py.
#include "worker/engine/formats/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_folder.h"
#include "worker/engine/formats/gguf_metadata.h"
#include "worker/engine/formats/gguf_reader.h"
#include "worker/engine/formats/gguf_tokenizer_writer.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

constexpr char kFolder[] = "tests/golden/gguf/";

TEST(GgufTokenizerTest, GivesTheIdsOfTheOriginals) {
  const auto golden =
      nlohmann::json::parse(std::ifstream(std::string(kFolder) + "tokenizers.json"));
  ASSERT_EQ(golden["expected"].size(), 6u);
  for (const auto& [name, cases] : golden["expected"].items()) {
    auto tokenizer = Tokenizer::Open(kFolder + ("tokenizer-" + name + ".gguf"), 512);
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status();
    for (const auto& [text, ids] : cases.get<std::vector<std::pair<std::string, TokenIds>>>()) {
      auto encoded = (*tokenizer)->Encode(text);
      ASSERT_TRUE(encoded.ok()) << name << ": " << encoded.status();
      EXPECT_EQ(*encoded, ids) << name << ": \"" << text << "\"";
    }
  }
}

TEST(GgufTokenizerTest, AddsTheFirstTokenAsLlamaCppDoes) {
  for (const auto& [name, bos] :
       {std::pair("gpt-2", -1), std::pair("llama-bpe", 1), std::pair("sentencepiece", 1)}) {
    auto tokenizer = Tokenizer::Open(kFolder + (std::string("tokenizer-") + name + ".gguf"), 512);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->bos().value_or(-1), bos) << name;
  }
}

TEST(GgufTokenizerTest, DecodesWhatItEncodes) {
  for (const char* name : {"smollm", "sentencepiece"}) {
    auto tokenizer = Tokenizer::Open(kFolder + (std::string("tokenizer-") + name + ".gguf"), 512);
    ASSERT_TRUE(tokenizer.ok());
    const std::string text = "Once upon a time 123, \xC3\xA9 \xF0\x9F\x9A\x80!\n";
    EXPECT_EQ(*(*tokenizer)->Decode(*(*tokenizer)->Encode(text)), text) << name;
  }
}

TEST(GgufTokenizerTest, RefusesIdsBeyondTheModel) {
  // Fillers behind the last token in use do not count.
  EXPECT_TRUE(Tokenizer::Open(std::string(kFolder) + "tokenizer-gpt-2.gguf", 402).ok());
  EXPECT_FALSE(Tokenizer::Open(std::string(kFolder) + "tokenizer-gpt-2.gguf", 401).ok());
}

// A little vocabulary of metadata values, to be spoilt.
class GgufTokenizerErrorTest : public ::testing::Test {
 protected:
  GgufTokenizerErrorTest() {
    Set("tokenizer.ggml.model", "gpt2");
    Set("tokenizer.ggml.pre", "gpt-2");
    SetStrings("tokenizer.ggml.tokens", {"a", "b", "ab", "<s>"});
    SetStrings("tokenizer.ggml.merges", {"a b"});
    SetIntegers("tokenizer.ggml.token_type", {1, 1, 1, 3});
    SetFloats("tokenizer.ggml.scores", {-1, -2, -3, 0});
    SetInteger("tokenizer.ggml.bos_token_id", 3);
  }
  void Set(const std::string& key, absl::string_view text) {
    values_[key] = {GgufValueType::kString, text};
  }
  void SetInteger(const std::string& key, uint64_t value) {
    values_[key] = {GgufValueType::kUint32, value};
  }
  void SetFlag(const std::string& key, bool value) { values_[key] = {GgufValueType::kBool, value}; }
  void SetStrings(const std::string& key, std::vector<absl::string_view> strings) {
    GgufArray array{GgufValueType::kString, static_cast<int64_t>(strings.size()), {}, strings};
    values_[key] = {GgufValueType::kArray, array};
  }
  void SetIntegers(const std::string& key, const std::vector<int32_t>& integers) {
    SetNumbers(key, GgufValueType::kInt32, integers);
  }
  void SetFloats(const std::string& key, const std::vector<float>& floats) {
    SetNumbers(key, GgufValueType::kFloat32, floats);
  }
  std::string Refusal() {
    auto files = TokenizerFilesFromGguf(GgufMetadata(values_));
    EXPECT_EQ(files.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(files.status().message());
  }

  std::map<std::string, GgufValue> values_;

 private:
  template <typename T>
  void SetNumbers(const std::string& key, GgufValueType type, const std::vector<T>& numbers) {
    bytes_.emplace_back(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T));
    values_[key] = {GgufValueType::kArray,
                    GgufArray{type, static_cast<int64_t>(numbers.size()), bytes_.back(), {}}};
  }
  // What the values view; never moved.
  std::deque<std::string> bytes_;
};

TEST_F(GgufTokenizerErrorTest, NamesTheKeyAndTheRule) {
  ASSERT_TRUE(TokenizerFilesFromGguf(GgufMetadata(values_)).ok());
  const auto valid = values_;
  const auto expect = [&](const std::string& message) {
    EXPECT_THAT(Refusal(), HasSubstr(message));
    values_ = valid;
  };
  Set("tokenizer.ggml.model", "rwkv"), expect("tokenizer.ggml.model is not supported: \"rwkv\"");
  Set("tokenizer.ggml.pre", "viking"), expect(
                                           "tokenizer.ggml.pre is not supported: \"viking\"; "
                                           "supported: default, gpt-2");
  values_.erase("tokenizer.ggml.tokens"), expect("tokenizer.ggml.tokens is missing");
  SetStrings("tokenizer.ggml.tokens", {}), expect("must not be empty");
  SetStrings("tokenizer.ggml.tokens", {"a", "b", "a", "c"}),
      expect("has the same token at 0 and 2: \"a\"");
  SetStrings("tokenizer.ggml.tokens", {"a", "b", "\xFF", "c"}), expect("[2] must be UTF-8");
  SetIntegers("tokenizer.ggml.token_type", {1, 1}), expect("for each of the 4 tokens, has 2");
  SetIntegers("tokenizer.ggml.token_type", {1, 1, 9, 1}), expect("[2] must be from 1 to 6, is 9");
  values_.erase("tokenizer.ggml.merges"), expect("tokenizer.ggml.merges is missing");
  for (const char* merge : {"", " ", "ab", "ab ", " ab"}) {
    SetStrings("tokenizer.ggml.merges", {"a b", merge}), expect("tokenizer.ggml.merges [1] must");
  }
  SetInteger("tokenizer.ggml.bos_token_id", 4), expect("tokenizer.ggml.bos_token_id must be an");
  SetFlag("tokenizer.ggml.add_eos_token", true), expect("tokenizer.ggml.eos_token_id is missing");
  Set("tokenizer.ggml.model", "llama");
  SetFloats("tokenizer.ggml.scores", {1, 2}), expect("tokenizer.ggml.scores must have one value");
  Set("tokenizer.ggml.model", "llama");
  SetFloats("tokenizer.ggml.scores", {1, 2, NAN, 3}), expect("scores [2] must be finite");
}

TEST_F(GgufTokenizerErrorTest, KeepsTheChatTemplateAndNamesOfSpecialTokens) {
  Set("tokenizer.chat_template", "{{ x }}");
  SetFlag("tokenizer.ggml.add_bos_token", true);
  auto files = TokenizerFilesFromGguf(GgufMetadata(values_));
  ASSERT_TRUE(files.ok()) << files.status();
  const auto config = nlohmann::json::parse(files->at("tokenizer_config.json"));
  EXPECT_EQ(config["chat_template"], "{{ x }}");
  EXPECT_EQ(config["bos_token"], "<s>");
  EXPECT_EQ(config["add_bos_token"], true);
}

// What a file of our own says of the special tokens, as its reader sees it.
class GgufTokenizerWriterTest : public ::testing::Test {
 protected:
  std::unique_ptr<const GgufReader> Write(const TokenizerFiles& files, const char* model_config) {
    const auto metadata = GgufMetadataOfTokenizer(files, 4, nlohmann::json::parse(model_config));
    EXPECT_TRUE(metadata.ok()) << metadata.status();
    const std::string path = folder_.path() + "/tokenizer.gguf";
    EXPECT_TRUE(WriteGguf(path, *metadata, {}).ok());
    auto reader = GgufReader::Open(path);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return *std::move(reader);
  }
  static int64_t Id(const GgufReader& reader, const char* name) {
    return reader.metadata()
        .Integer(absl::StrCat("tokenizer.ggml.", name, "_token_id"), 99, 0, 99)
        .value();
  }
  static bool Adds(const GgufReader& reader, const char* name) {
    return reader.metadata()
        .Boolean(absl::StrCat("tokenizer.ggml.add_", name, "_token"), false)
        .value();
  }
  // A vocabulary of four, with what stands around a text.
  static std::string Json(const std::string& post_processor) {
    return absl::StrCat(
        R"({"added_tokens":[{"id":2,"content":"<s>","special":true},)",
        R"({"id":3,"content":"</s>","special":true}],"post_processor":)", post_processor,
        R"(,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)",
        R"("model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}})");
  }

  const TempFolder folder_;
};

TEST_F(GgufTokenizerWriterTest, FindsSpecialTokensWhereverTheyAreNamed) {
  // The tokenizer's config goes before its map, and both before the model's ids.
  auto reader = Write({{"tokenizer.json", Json("null")},
                       {"tokenizer_config.json", R"({"bos_token":"<s>"})"},
                       {"special_tokens_map.json",
                        R"({"bos_token":"a","pad_token":{"content":"</s>","lstrip":false}})"}},
                      R"({"bos_token_id":1,"eos_token_id":[3,0],"pad_token_id":1})");
  EXPECT_EQ(Id(*reader, "bos"), 2);
  EXPECT_EQ(Id(*reader, "padding"), 3);
  EXPECT_EQ(Id(*reader, "eos"), 3);
  EXPECT_EQ(Id(*reader, "unknown"), 99);
  EXPECT_FALSE(Adds(*reader, "bos"));
  EXPECT_FALSE(Adds(*reader, "eos"));
  // Ids that the model has not are none.
  reader = Write({{"tokenizer.json", Json("null")}}, R"({"bos_token_id":4,"eos_token_id":-1})");
  EXPECT_EQ(Id(*reader, "bos"), 99);
  EXPECT_EQ(Id(*reader, "eos"), 99);
}

TEST_F(GgufTokenizerWriterTest, SaysWhatStandsAroundAText) {
  const char* ids = R"({"bos_token_id":2,"eos_token_id":3})";
  auto reader = Write(
      {{"tokenizer.json",
        Json(
            R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},)"
            R"({"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}]})")}},
      ids);
  EXPECT_TRUE(Adds(*reader, "bos"));
  EXPECT_TRUE(Adds(*reader, "eos"));
  reader = Write({{"tokenizer.json", Json("null")},
                  {"tokenizer_config.json", R"({"add_bos_token":true,"add_eos_token":true})"}},
                 ids);
  EXPECT_TRUE(Adds(*reader, "bos"));
  EXPECT_TRUE(Adds(*reader, "eos"));
  reader = Write({{"tokenizer.json", Json("null")},
                  {"tokenizer_config.json", R"({"tokenizer_class":"LlamaTokenizerFast"})"}},
                 ids);
  EXPECT_TRUE(Adds(*reader, "bos"));
  EXPECT_FALSE(Adds(*reader, "eos"));
}

}  // namespace
}  // namespace qpruner::engine
