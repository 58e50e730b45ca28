#include "worker/engine/evaluate/choice_item.h"

#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/evaluate/choice_file.h"
#include "worker/engine/evaluate/python_text.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PythonTextTest, ActsAsPythonDoes) {
  EXPECT_EQ(CodePointCount("naïve ☾夢"), 8);
  EXPECT_EQ(StripRight("a b \t\n\xC2\xA0\xE3\x80\x80"), "a b");
  EXPECT_EQ(Strip("\xE2\x80\x89 a\x1C"), "a");
  EXPECT_EQ(Strip(" \n"), "");
  EXPECT_EQ(Capitalize("éMILE and SHE"), "Émile and she");
  EXPECT_EQ(Capitalize(""), "");
}

TEST(CleanHellaSwagTest, EqualsLmEvals) {
  EXPECT_EQ(CleanHellaSwag(" How to [title] Mix [step] now "), "How to. Mix now");
  EXPECT_EQ(CleanHellaSwag("open [ and\nclosed ] here"), "open [ and\nclosed ] here");
  EXPECT_EQ(CleanHellaSwag("a [[b] c]"), "a c]");
}

std::string Refusal(const char* row) {
  return std::string(ChoiceItemOf(nlohmann::json::parse(row)).status().message());
}

TEST(ChoiceItemTest, RefusesByFieldAndRule) {
  EXPECT_THAT(Refusal(R"({"query": 1, "choices": ["a", "b"], "gold": 0})"),
              HasSubstr("\"query\" must be a string"));
  EXPECT_THAT(Refusal(R"({"query": "q", "choices": ["a"], "gold": 0})"),
              HasSubstr("\"choices\" must be 2 to 64 choices, are 1"));
  EXPECT_THAT(Refusal(R"({"query": "q", "choices": ["a", ""], "gold": 0})"),
              HasSubstr("\"choices\" must not be empty"));
  EXPECT_THAT(Refusal(R"({"query": "q", "choices": ["a", "b"], "gold": 2})"),
              HasSubstr("\"gold\" must be one of the 2 choices, from 0; is 2"));
  EXPECT_THAT(Refusal(R"({"query": "q", "choices": ["a", "b"], "gold": -1})"),
              HasSubstr("\"gold\""));
  EXPECT_THAT(Refusal(R"({"query": " \n", "choices": ["a", "b"], "gold": 0})"),
              HasSubstr("more than white space"));
  EXPECT_THAT(Refusal(R"({"query": "q", "choices": ["a", "b"], "gold": 0, "glod": 1})"),
              HasSubstr("unknown field \"glod\""));
  EXPECT_THAT(Refusal(R"({"context_options": ["a"], "continuation": "c", "gold": 0})"),
              HasSubstr("\"context_options\" must have at least 2"));
  EXPECT_THAT(Refusal(R"({"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"})"),
              HasSubstr("\"sentence\" must have a gap"));
  EXPECT_THAT(Refusal(R"({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]},
                          "answerKey": "C"})"),
              HasSubstr("\"answerKey\" must be one of the labels (A, B)"));
  EXPECT_THAT(Refusal(R"({"text": "q"})"), HasSubstr("{query, choices, gold}"));
}

class ChoiceFileTest : public ::testing::Test {
 protected:
  ~ChoiceFileTest() override { std::remove(path_.c_str()); }
  absl::StatusOr<std::vector<ChoiceItem>> Read(const std::string& text,
                                               const ChoiceFileOptions& options = {}) {
    EXPECT_TRUE(WriteFileDurably(path_, text).ok());
    return ReadChoiceFile(path_, options);
  }
  const std::string path_ = testing::TempDir() + "/choices." + std::to_string(getpid()) + ".jsonl";
};

TEST_F(ChoiceFileTest, ReadsRowsUpToTheLimitAndAddsTheSuffix) {
  const std::string rows =
      "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\r\n\n"
      "{\"context_options\": [\"x\", \"y\"], \"continuation\": \"z\", \"gold\": 0}\n";
  const auto items = Read(rows, {.query_suffix = "\nAnswer:"});
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->size(), 2u);
  EXPECT_THAT((*items)[0].contexts, ElementsAre("Q\nAnswer:"));
  EXPECT_EQ((*items)[0].gold, 1);
  EXPECT_TRUE((*items)[1].partial());
  EXPECT_THAT((*items)[1].contexts, ElementsAre("x", "y"));
  // What lies behind the limit is not looked at.
  EXPECT_EQ(Read(rows + "garbage", {.limit = 2})->size(), 2u);

  ASSERT_TRUE(WriteChoiceFile(path_, *items).ok());
  const auto again = ReadChoiceFile(path_);
  ASSERT_TRUE(again.ok()) << again.status();
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ((*again)[i].contexts, (*items)[i].contexts);
    EXPECT_EQ((*again)[i].continuations, (*items)[i].continuations);
    EXPECT_EQ((*again)[i].gold, (*items)[i].gold);
  }
}

TEST_F(ChoiceFileTest, ReadsHellaSwagsSixLines) {
  const auto items =
      Read("Juggling: A man [header] juggles.  he\n2\nsings.\nruns.\nends [x] it.\nis.\n");
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->size(), 1u);
  EXPECT_EQ((*items)[0].gold, 2);
  EXPECT_THAT((*items)[0].contexts, ElementsAre("Juggling: A man juggles. he"));
  EXPECT_THAT((*items)[0].continuations, ElementsAre("sings.", "runs.", "ends it.", "is."));
}

TEST_F(ChoiceFileTest, RefusesByLine) {
  const auto refusal = [&](const std::string& text) {
    return std::string(Read(text).status().message());
  };
  EXPECT_THAT(
      refusal("{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n{\"query\": 3}"),
      HasSubstr("line 2: "));
  EXPECT_THAT(refusal("{\"gold\": 1, \"gold\": 0}"), HasSubstr("line 1: "));
  EXPECT_THAT(refusal("A context\n4\na\nb\nc\nd\n"), HasSubstr("0 to 3"));
  EXPECT_THAT(refusal("A context\n3\na\nb\n"), HasSubstr("ends before"));
  EXPECT_THAT(refusal(" \n"), HasSubstr("holds no item"));
  EXPECT_THAT(refusal("{\"query\": \"\xFF\"}"), HasSubstr("not UTF-8 at byte 11"));
  EXPECT_EQ(ReadChoiceFile("/no/such/file").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qpruner::engine
