#include "worker/engine/calibrate/input_moments.h"

#include <ATen/ATen.h>

#include "gtest/gtest.h"
#include "worker/engine/gradient/random_model.h"

namespace qpruner::engine {
namespace {

// The inputs of one linear in a plain forward pass, [tokens, in].
at::Tensor InputsOf(MemoryWeightSource& model, const std::vector<TokenBatch>& batches,
                    int64_t block, LinearKind wanted) {
  std::vector<at::Tensor> seen;
  for (const TokenBatch& batch : batches) {
    for (const TokenBatch& row : SplitRows(batch)) {
      int64_t calls = 0;  // Logits tells no block: count the calls of this kind.
      Logits(model, row.ids,
             [&](LinearKind kind, const at::Tensor& x, const at::Tensor& weight,
                 const at::Tensor& bias) {
               if (kind == wanted && calls++ == block) seen.push_back(x.reshape({-1, x.size(-1)}));
               return PlainLinear(kind, x, weight, bias);
             });
    }
  }
  return at::cat(seen);
}

TEST(InputMoments, AreTheMeanOuterProductsOfAllTokensWithoutPadding) {
  MemoryWeightSource model = RandomModel();
  const std::vector<TokenBatch> batches = {RandomBatch({8, 5, 2}, 40, 9), RandomBatch({12}, 40, 1)};
  int64_t visited = 0;
  double last = 0;
  WalkInputMoments(
      model, batches,
      [&](int64_t block, const BlockWeights& weights, const InputMoments& moments) {
        EXPECT_EQ(block, visited++);
        for (LinearKind kind : kLinearKinds) {
          const at::Tensor x = InputsOf(model, batches, block, kind);
          ASSERT_EQ(x.size(0), 8 + 5 + 2 + 12);
          const at::Tensor expected = at::matmul(x.t(), x) / static_cast<double>(x.size(0));
          // float32 sums in another order.
          EXPECT_TRUE(at::allclose(moments[kind], expected, 1e-4, 1e-6)) << LinearName(block, kind);
          EXPECT_TRUE(at::equal(weights.weight[kind], model.Block(block).weight[kind]));
        }
        EXPECT_TRUE(moments[LinearKind::kValue].is_same(moments[LinearKind::kQuery]));
      },
      [&](double fraction) {
        EXPECT_GT(fraction, last);
        last = fraction;
      });
  EXPECT_EQ(visited, 3);
  EXPECT_EQ(last, 1);
}

}  // namespace
}  // namespace qpruner::engine
