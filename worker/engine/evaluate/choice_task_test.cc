// Against EleutherAI's lm-eval, item by item: tests/compat/lm_eval_golden.py.
#include "worker/engine/evaluate/choice_task.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

using nlohmann::json;

class LmEvalTest : public ::testing::TestWithParam<const char*> {
 protected:
  LmEvalTest() {
    const auto text = ReadFile("tests/golden/lm_eval_stories260k.json", 1 << 20);
    EXPECT_TRUE(text.ok()) << text.status();
    golden_ = json::parse(*text).at("tasks").at(GetParam());
    auto checkpoint = Checkpoint::Open("data/models/stories260k");
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    tokenizer_ = *Tokenizer::Open("data/models/stories260k", (*checkpoint)->config().vocab_size);
    source_ = MakeCheckpointSource(*std::move(checkpoint), at::kCPU, at::kFloat);
  }
  json golden_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<WeightSource> source_;
};

TEST_P(LmEvalTest, AgreesItemByItem) {
  std::vector<ChoiceItem> items;
  for (const json& row : golden_.at("rows")) {
    auto item = ChoiceItemOf(row);
    ASSERT_TRUE(item.ok()) << item.status();
    items.push_back(*std::move(item));
  }
  const auto task =
      MakeChoiceTask(GetParam(), items, *tokenizer_, source_->config().max_position_embeddings);
  ASSERT_TRUE(task.ok()) << task.status();
  const ChoiceScores scores = MeasureChoiceTask(*source_, *task);
  ASSERT_EQ(scores.items.size(), golden_.at("items").size());
  for (size_t i = 0; i < items.size(); ++i) {
    SCOPED_TRACE(i);
    const json& expected = golden_.at("items")[i];
    const ItemScore& actual = scores.items[i];
    ASSERT_EQ(actual.choices.size(), expected.at("requests").size());
    for (size_t choice = 0; choice < actual.choices.size(); ++choice) {
      const auto either = [&](const std::vector<std::string>& texts) {
        return texts[texts.size() == 1 ? 0 : choice];
      };
      EXPECT_EQ(either(items[i].contexts), expected.at("requests")[choice][0]);
      EXPECT_EQ(absl::StrCat(" ", either(items[i].continuations)),
                expected.at("requests")[choice][1]);
      // Float32 arithmetic in another order of summation: logits differ by some 1e-6.
      const double nats = expected.at("log_likelihoods")[choice];
      EXPECT_NEAR(actual.choices[choice].nats, nats, 1e-5 * std::max(1.0, -nats));
      EXPECT_EQ(actual.choices[choice].greedy, expected.at("greedy")[choice].get<bool>());
    }
    EXPECT_EQ(actual.correct, expected.at("acc") == 1.0);
    if (scores.has_normalized) {
      EXPECT_EQ(actual.correct_by_characters, expected.at("acc_norm") == 1.0);
      EXPECT_EQ(actual.correct_by_bytes, expected.at("acc_bytes") == 1.0);
    }
  }
  const auto expect = [&](const char* metric, const Accuracy& actual) {
    EXPECT_NEAR(actual.mean, golden_.at("summary").at(metric)[0].get<double>(), 1e-12) << metric;
    EXPECT_NEAR(actual.standard_error, golden_.at("summary").at(metric)[1].get<double>(), 1e-12)
        << metric;
  };
  expect("acc", scores.acc);
  if (scores.has_normalized) {
    expect("acc_norm", scores.acc_norm);
    expect("acc_bytes", scores.acc_bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, LmEvalTest,
                         ::testing::Values("plain", "partial", "boolq", "piqa", "hellaswag",
                                           "arc_easy", "openbookqa", "winogrande"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ScoreChoicesTest, NormalizesByLengthAndTakesTheFirstOfEquals) {
  const ChoiceItem plain{.contexts = {"q"}, .continuations = {"é", "abcd"}, .gold = 1};
  const ChoiceItem tie{.contexts = {"q"}, .continuations = {"a", "b"}, .gold = 1};
  const ChoiceScores scores =
      ScoreChoices({plain, tie}, {{-1, false}, {-2.5, false}, {-3, false}, {-3, false}});
  EXPECT_FALSE(scores.items[0].correct);
  EXPECT_TRUE(scores.items[0].correct_by_characters);  // -1 / 1 against -2.5 / 4
  EXPECT_FALSE(scores.items[0].correct_by_bytes);      // -1 / 2 against -2.5 / 4
  EXPECT_FALSE(scores.items[1].correct);
  EXPECT_DOUBLE_EQ(scores.acc_norm.mean, 0.5);
  EXPECT_DOUBLE_EQ(scores.acc_norm.standard_error, 0.5);  // sqrt(0.5) / sqrt(2)
}

TEST(EncodeContinuationTest, SaysWhatCannotBeScored) {
  const auto tokenizer = Tokenizer::Open("data/models/stories260k", 512);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(
      std::string(
          EncodeContinuation(**tokenizer, "Once", " upon a time there was", 3).status().message()),
      ::testing::HasSubstr("the model sees at most 3"));
  const auto cut = EncodeContinuation(**tokenizer, "Once upon a time there was a dog", " Max", 4);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->input.size(), 4u);
}

}  // namespace
}  // namespace qpruner::engine
