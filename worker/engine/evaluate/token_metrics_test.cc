#include "worker/engine/evaluate/token_metrics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/durable_file.h"
#include "nlohmann/json.hpp"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/texts/dataset.h"

namespace qpruner::engine {
namespace {

// Plain loops in double over full logits.
TokenMetrics NaiveMetrics(const std::vector<TokenBatch>& batches,
                          const std::vector<at::Tensor>& hidden, const at::Tensor& head,
                          const ReferenceStates& reference) {
  TokenMetrics metrics;
  for (size_t i = 0; i < batches.size(); ++i) {
    const auto log_p = [&](const at::Tensor& h, const at::Tensor& w, int64_t row, int64_t t) {
      at::Tensor logits = at::mv(w.to(at::kDouble), h[row][t].to(at::kDouble));
      std::vector<double> result(static_cast<size_t>(logits.size(0)));
      double sum = 0;
      for (int64_t k = 0; k < logits.size(0); ++k) sum += std::exp(logits[k].item<double>());
      for (size_t k = 0; k < result.size(); ++k) {
        result[k] = logits[static_cast<int64_t>(k)].item<double>() - std::log(sum);
      }
      return result;
    };
    for (int64_t row = 0; row < batches[i].ids.size(0); ++row) {
      const int64_t length = batches[i].lengths[row].item<int64_t>();
      for (int64_t t = 0; t + 1 < length; ++t) {
        const auto p = log_p(hidden[i], head, row, t);
        const auto q = log_p(reference.hidden[i], reference.head, row, t);
        ++metrics.token_count;
        metrics.nll_sum -= p[static_cast<size_t>(batches[i].ids[row][t + 1].item<int64_t>())];
        for (size_t k = 0; k < p.size(); ++k) metrics.kl_sum += std::exp(q[k]) * (q[k] - p[k]);
        metrics.top1_agreement_sum += std::max_element(p.begin(), p.end()) - p.begin() ==
                                      std::max_element(q.begin(), q.end()) - q.begin();
      }
    }
  }
  return metrics;
}

TEST(TokenMetricsTest, EqualsThePlainReference) {
  at::manual_seed(7);
  const std::vector<TokenBatch> batches =
      MakeBatches({{1, 5, 3}, {2, 9, 9, 4, 0, 1}, {7}, {3, 3, 3, 3}}, 10);
  ASSERT_GE(batches.size(), 2u);
  std::vector<at::Tensor> hidden;
  ReferenceStates reference;
  for (const TokenBatch& batch : batches) {
    hidden.push_back(at::randn({batch.ids.size(0), batch.ids.size(1), 6}));
    reference.hidden.push_back(hidden.back() + 0.3 * at::randn_like(hidden.back()));
  }
  const at::Tensor head = at::randn({11, 6});
  reference.head = head + 0.1 * at::randn_like(head);
  const TokenMetrics expected = NaiveMetrics(batches, hidden, head, reference);
  const TokenMetrics actual = Evaluate(batches, hidden, head, &reference);
  EXPECT_EQ(actual.token_count, 2 + 5 + 0 + 3);
  EXPECT_EQ(actual.token_count, expected.token_count);
  // Float32 log-softmax over 11 values: a few units in the last place each.
  EXPECT_NEAR(actual.nll_sum, expected.nll_sum, 1e-5 * expected.nll_sum);
  EXPECT_NEAR(actual.kl_sum, expected.kl_sum, 1e-5 * expected.kl_sum);
  EXPECT_EQ(actual.top1_agreement_sum, expected.top1_agreement_sum);
  EXPECT_LT(actual.top1_agreement_sum, actual.token_count);

  const TokenMetrics alone = Evaluate(batches, hidden, head);
  EXPECT_FALSE(alone.has_reference);
  EXPECT_EQ(alone.nll_sum, actual.nll_sum);
  EXPECT_EQ(alone.kl_sum, 0);
}

TEST(TokenMetricsTest, KlOfAModelToItselfIsZero) {
  at::manual_seed(8);
  const std::vector<TokenBatch> batches = MakeBatches({{1, 2, 3, 4}});
  ReferenceStates reference{{at::randn({1, 4, 6})}, at::randn({11, 6})};
  const TokenMetrics metrics = Evaluate(batches, reference.hidden, reference.head, &reference);
  EXPECT_EQ(metrics.kl_sum, 0);
  EXPECT_EQ(metrics.top1_agreement(), 1);
}

TEST(TokenMetricsTest, RefusesStatesOfOtherBatches) {
  const std::vector<TokenBatch> batches = MakeBatches({{1, 2, 3, 4}});
  const at::Tensor head = at::randn({11, 6});
  EXPECT_THROW(Evaluate(batches, {}, head), c10::Error);
  EXPECT_THROW(Evaluate(batches, {at::randn({1, 3, 6})}, head), c10::Error);
}

// First 100 stories, bos + text, at most 512 tokens. `perplexity` is transformers' in float32;
// 0.05 % is five times the rounding of the figures. `token_count` 0: not known.
void ExpectPerplexity(const std::string& folder, int64_t token_count, double perplexity) {
  auto checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto tokenizer = Tokenizer::Open(folder, (*checkpoint)->config().vocab_size);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto text = ReadFile("data/corpus/tinystories.txt", 8 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  std::vector<TokenIds> sequences;
  for (absl::string_view story : SplitDocuments(*text, "<|endoftext|>")) {
    if (sequences.size() == 100) break;
    auto ids = (*tokenizer)->EncodeDocument(story);
    ASSERT_TRUE(ids.ok()) << ids.status();
    ids->resize(std::min<size_t>(ids->size(), 512));
    sequences.push_back(*std::move(ids));
  }
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  const TokenMetrics metrics = EvaluateModel(*source, MakeBatches(sequences));
  if (token_count > 0) {
    EXPECT_EQ(metrics.token_count, token_count);
  }
  EXPECT_NEAR(metrics.perplexity(), perplexity, 0.0005 * perplexity);
  std::printf("%s: %lld tokens, perplexity %.4f\n", folder.c_str(),
              static_cast<long long>(metrics.token_count), metrics.perplexity());
}

// Windows and log-likelihood of lm-eval: tests/compat/lm_eval_golden.py.
TEST(PerplexityTest, RollsAsLmEvalDoes) {
  const auto file = ReadFile("tests/golden/lm_eval_stories260k.json", 1 << 20);
  ASSERT_TRUE(file.ok()) << file.status();
  const nlohmann::json golden = nlohmann::json::parse(*file).at("rolling");
  const std::string folder = "data/models/stories260k";
  const auto checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto tokenizer = Tokenizer::Open(folder, (*checkpoint)->config().vocab_size);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->EncodeDocument(golden.at("text").get<std::string>());
  ASSERT_TRUE(ids.ok()) << ids.status();
  // Lists as strings: one line each.
  const auto list = [](const nlohmann::json& text) {
    return nlohmann::json::parse(text.get<std::string>());
  };
  ASSERT_EQ(*ids, list(golden.at("ids")).get<TokenIds>());
  const auto rolling = [&](int64_t max_seq_len, int64_t context_len) {
    return RollingWindows(*ids, max_seq_len + 1, max_seq_len + 1 - context_len);
  };
  for (const nlohmann::json& expected : golden.at("sizes")) {
    const auto bounds = list(expected.at("bounds")).get<std::vector<int64_t>>();
    std::vector<Window> windows;
    for (size_t i = 0; i + 2 < bounds.size(); i += 3) {
      windows.push_back(
          {{ids->begin() + bounds[i], ids->begin() + bounds[i + 2]}, bounds[i + 1] - bounds[i]});
    }
    EXPECT_EQ(rolling(expected.at("max_seq_len"), expected.at("context_len")), windows);
  }
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  const TokenMetrics metrics =
      EvaluateModel(*source, BatchWindows(rolling(golden.at("max_length"), 1)));
  EXPECT_EQ(metrics.token_count, static_cast<int64_t>(ids->size()) - 1);
  // Both in float32: sums of hundreds of terms, each within 1e-6 of the other's.
  const auto log_likelihood = golden.at("log_likelihood").get<double>();
  EXPECT_NEAR(-metrics.nll_sum, log_likelihood, 1e-5 * std::abs(log_likelihood));
}

TEST(PerplexityTest, Stories260kAgreesWithTransformers) {
  ExpectPerplexity("data/models/stories260k", 37072, 4.0862);
}

TEST(PerplexityTest, Tinystories656kAgreesWithTransformers) {
  const char* shared = std::getenv("QPRUNER_SHARED_DIR");
  const std::string folder =
      std::string(shared == nullptr ? "../shared" : shared) + "/data/models/tinystories-656k";
  if (::access(folder.c_str(), F_OK) != 0) GTEST_SKIP() << "No such model here: " << folder;
  ExpectPerplexity(folder, 18124, 23.4613);
}

}  // namespace
}  // namespace qpruner::engine
