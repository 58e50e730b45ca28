#include "worker/engine/evaluate/logit_rows.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "worker/engine/evaluate/head_scores.h"

namespace qpruner::engine {
namespace {

class LogitRowsTest : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(LogitRowsTest, EqualsLogSoftmaxInDouble) {
  at::manual_seed(5);
  // A row of several parts, and one shorter than a vector.
  for (const int64_t width : {4099, 11}) {
    const at::Tensor p = (at::randn({9, width}) * 5).to(GetParam());
    const at::Tensor q = (p.to(at::kFloat) + 0.3 * at::randn({9, width})).to(GetParam());
    const at::Tensor log_p = at::log_softmax(p.to(at::kDouble), -1);
    const at::Tensor log_q = at::log_softmax(q.to(at::kDouble), -1);
    const RowSummary of_p = SummarizeRows(p), of_q = SummarizeRows(q);
    EXPECT_TRUE(at::equal(of_p.most_likely, p.argmax(-1)));
    // Exponentials are good to 2e-7 each.
    EXPECT_TRUE(at::allclose(of_p.log_sum_exp, at::logsumexp(p.to(at::kDouble), -1), 0, 1e-6));
    const at::Tensor expected = (log_p.exp() * (log_p - log_q)).sum(-1);
    const at::Tensor actual = DivergeRows(p, of_p.log_sum_exp, q, of_q.log_sum_exp);
    // A probability is good to half a unit in the last place of a logit near 20, 1e-6.
    EXPECT_TRUE(at::allclose(actual, expected, 1e-5, 1e-6)) << actual << expected;
    const at::Tensor same = DivergeRows(p, of_p.log_sum_exp, p, of_p.log_sum_exp);
    EXPECT_TRUE(at::equal(same, at::zeros_like(same)));
  }
}

TEST_P(LogitRowsTest, SumsEqualThePlainOnes) {
  at::manual_seed(6);
  const at::Tensor head = at::randn({70001, 24}).to(GetParam());  // Several chunks of rows.
  const HeadRows reference{at::randn({500, 24}), head};
  const HeadRows near{reference.rows + 0.05 * at::randn({500, 24}), head};
  const HeadRows far{at::randn({500, 24}), head};
  const at::Tensor targets = at::randint(70001, {500}, at::kLong);
  const auto fast = SumHeads(&reference, {near, far, reference}, targets);
  const auto plain = SumHeads(&reference, {near, far, reference}, targets, /*plain=*/true);
  for (size_t i = 0; i < 3; ++i) {
    // From the same logits: what differs is float32 against double in the sums over the vocabulary,
    // where roundings average out. Measured with AVX2: 6e-9 and 2e-7.
    EXPECT_NEAR(fast[i].nll_sum, plain[i].nll_sum, 1e-7 * plain[i].nll_sum);
    EXPECT_NEAR(fast[i].kl_sum, plain[i].kl_sum, 1e-6 * plain[i].kl_sum + 1e-9);
    EXPECT_EQ(fast[i].top1_agreement_sum, plain[i].top1_agreement_sum);
  }
  EXPECT_EQ(fast[2].kl_sum, 0);
  EXPECT_EQ(fast[2].top1_agreement_sum, 500);
}

INSTANTIATE_TEST_SUITE_P(Types, LogitRowsTest, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

}  // namespace
}  // namespace qpruner::engine
