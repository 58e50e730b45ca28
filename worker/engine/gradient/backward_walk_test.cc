#include "worker/engine/gradient/backward_walk.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "worker/engine/gradient/random_model.h"

namespace qpruner::engine {
namespace {

// Weight gradients from what the walk traced.
class WeightGradients final : public LinearTracing {
 public:
  explicit WeightGradients(int64_t blocks) : gradients(blocks) {}
  void TakeTraces(int64_t block, int64_t batch, const PerLinear<LinearTrace>& traces) override {
    for (LinearKind kind : kLinearKinds) {
      at::Tensor found = at::matmul(traces[kind].output_gradient.flatten(0, 1).t(),
                                    traces[kind].input.flatten(0, 1));
      at::Tensor& sum = gradients[block][kind];
      sum = sum.defined() ? sum + found : found;
    }
  }
  std::vector<PerLinear<at::Tensor>> gradients;
};

at::Tensor SummedCrossEntropy(const at::Tensor& logits, const at::Tensor& targets) {
  return at::cross_entropy_loss(logits.flatten(0, 1), targets.flatten(), {}, at::Reduction::Sum,
                                kNoTarget);
}

TEST(NextTokenTargetsTest, StopsBeforePadding) {
  TokenBatch batch;
  batch.ids = at::tensor({5, 6, 7, 8, 9, 0, 0, 0}, at::kLong).view({2, 4});
  batch.lengths = at::tensor({4, 1}, at::kLong);
  EXPECT_TRUE(
      at::equal(NextTokenTargets(batch),
                at::tensor({6, 7, 8, -100, -100, -100, -100, -100}, at::kLong).view({2, 4})));
}

// In double both sides agree to rounding, so that a wrong term of any size would show.
TEST(BackwardWalkTest, GradientsEqualWholeModelAutograd) {
  MemoryWeightSource model = RandomModel({.dtype = at::kDouble});
  const std::vector<TokenBatch> batches = {RandomBatch({9, 4, 7}, 40, 2),
                                           RandomBatch({5, 12}, 40, 3)};

  std::vector<at::Tensor> leaves;
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < 3; ++block) {
    blocks.push_back(model.Block(block));
    for (LinearKind kind : kLinearKinds) {
      blocks.back().weight[kind] = blocks.back().weight[kind].clone().requires_grad_(true);
      leaves.push_back(blocks.back().weight[kind]);
    }
  }
  MemoryWeightSource differentiable(model.config(), blocks, model.Embedding(), model.FinalNorm(),
                                    model.Head());
  at::Tensor expected_loss = at::zeros({}, at::kDouble);
  for (const TokenBatch& batch : batches) {
    expected_loss = expected_loss +
                    SummedCrossEntropy(Logits(differentiable, batch.ids), NextTokenTargets(batch));
  }
  const std::vector<at::Tensor> expected = torch::autograd::grad({expected_loss}, leaves);

  WeightGradients found(3);
  int64_t last_done = 0;
  const LossSum loss = WalkBackward(model, batches, found, [&](int64_t done, int64_t of) {
    EXPECT_EQ(done, last_done + 1);
    EXPECT_EQ(of, 6);
    last_done = done;
  });
  EXPECT_EQ(last_done, 6);
  EXPECT_EQ(loss.tokens, 8 + 3 + 6 + 4 + 11);
  EXPECT_NEAR(loss.nats, expected_loss.item<double>(), 1e-9);
  for (int64_t block = 0; block < 3; ++block) {
    for (LinearKind kind : kLinearKinds) {
      const at::Tensor& reference = expected[block * kLinearKindCount + static_cast<int>(kind)];
      EXPECT_TRUE(at::allclose(found.gradients[block][kind], reference, 1e-9, 1e-12))
          << LinearName(block, kind);
    }
  }
  EXPECT_NEAR(NextTokenLoss(model, batches).nats, loss.nats, 1e-9);
}

TEST(BackwardWalkTest, PaddingChangesNothing) {
  MemoryWeightSource model = RandomModel({.dtype = at::kDouble});
  const TokenBatch padded = RandomBatch({3, 11, 6}, 40, 4);
  WeightGradients together(3), apart(3);
  const LossSum loss = WalkBackward(model, {padded}, together);
  EXPECT_NEAR(WalkBackward(model, SplitRows(padded), apart).nats, loss.nats, 1e-9);
  for (LinearKind kind : kLinearKinds) {
    EXPECT_TRUE(at::allclose(together.gradients[0][kind], apart.gradients[0][kind], 1e-9, 1e-12));
  }
}

}  // namespace
}  // namespace qpruner::engine
