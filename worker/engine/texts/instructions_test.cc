#include "worker/engine/texts/instructions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "nlohmann/json.hpp"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string SourceDir() {
  const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
  return folder != nullptr ? folder : ".";
}

std::unique_ptr<Tokenizer> Stories() {
  auto tokenizer = Tokenizer::Open(SourceDir() + "/data/models/stories260k", 512);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

class InstructionsTest : public ::testing::Test {
 protected:
  InstructionsTest() {
    char pattern[] = "/tmp/qpruner_instructions_test.XXXXXX";
    folder_ = mkdtemp(pattern);
  }
  ~InstructionsTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::vector<Instruction>> Read(const std::string& text) {
    const std::string path = folder_ + "/data.json";
    std::ofstream(path) << text;
    return ReadInstructions(path);
  }
  std::string Refusal(const std::string& text) {
    const auto read = Read(text);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("data.json"));
    return std::string(read.status().message());
  }

  std::string folder_;
};

// Template, cut and masked positions as transformers' tokenizer and LLM-Pruner's rule give them:
// see tests/compat/instruction_golden.py.
TEST_F(InstructionsTest, TokensAndMasksAreLlmPruners) {
  std::ifstream file(SourceDir() + "/tests/golden/instructions.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  const auto tokenizer = Stories();
  for (const nlohmann::json& expected : golden["cases"]) {
    const Instruction instruction{expected["instruction"], expected["input"], expected["output"]};
    EXPECT_EQ(AlpacaPrompt(instruction.instruction, instruction.input),
              expected["prompt"].get<std::string>());
    const auto found =
        EncodeInstruction(*tokenizer, instruction, golden["eos"].get<int32_t>(), expected["limit"]);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->ids, expected["ids"].get<TokenIds>());
    TokenIds labels = found->ids;
    std::fill_n(labels.begin(), found->prompt_length, -100);
    EXPECT_EQ(labels, expected["labels"].get<TokenIds>());
  }
}

TEST_F(InstructionsTest, AShareIsEncodedWithoutWhatTeachesNothing) {
  const auto tokenizer = Stories();
  std::vector<Instruction> instructions;
  for (int i = 0; i < 20; ++i) {
    instructions.push_back({.instruction = "Say " + std::to_string(i), .output = "Yes."});
  }
  instructions[3].instruction = std::string(2000, 'x');
  // The fine-tuning share of 20: 2 to 12.
  const auto encoded = EncodeInstructions(*tokenizer, instructions, Share::kFineTune, {}, 256, 100);
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  EXPECT_THAT(*encoded, SizeIs(10));
  EXPECT_EQ((*encoded)[0].ids, EncodeInstruction(*tokenizer, instructions[2], {}, 256)->ids);
  EXPECT_EQ((*encoded)[1].ids, EncodeInstruction(*tokenizer, instructions[4], {}, 256)->ids);
  EXPECT_THAT(*EncodeInstructions(*tokenizer, instructions, Share::kFineTune, {}, 256, 4),
              SizeIs(4));
  EXPECT_THAT(
      std::string(EncodeInstructions(*tokenizer, instructions, Share::kFineTune, {}, 16, 100)
                      .status()
                      .message()),
      HasSubstr("16 tokens"));
}

TEST_F(InstructionsTest, FilesAreReadOrRefusedByEntry) {
  std::string entries;
  for (int i = 0; i < 10; ++i) {
    entries += std::string(i > 0 ? "," : "") + R"({"instruction": "a", "output": "b", "more": 1})";
  }
  const auto read = Read("[" + entries + "]");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(*read, SizeIs(10));
  EXPECT_EQ(read->front().input, "");
  EXPECT_THAT(Refusal("[" + entries + R"(,{"instruction": "a"}])"), HasSubstr("entry 10"));
  EXPECT_THAT(Refusal("[" + entries + ",3]"), HasSubstr("entry 10: must be an object"));
  EXPECT_THAT(Refusal("[" + entries + R"(,{"instruction": 1, "output": ""}])"),
              HasSubstr("\"instruction\""));
  EXPECT_THAT(Refusal("{}"), HasSubstr("list"));
  EXPECT_THAT(Refusal("[" + entries), HasSubstr("JSON"));
  EXPECT_THAT(Refusal(R"([{"instruction": "a", "output": "b"}])"), HasSubstr("10 are needed"));
  EXPECT_THAT(Refusal(std::string(100, '[') + std::string(100, ']')), HasSubstr("levels"));
  EXPECT_EQ(ReadInstructions(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qpruner::engine
