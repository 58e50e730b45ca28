#include "worker/engine/finetune/distillation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include "worker/engine/finetune/lora_gradients.h"
#include "worker/engine/gradient/random_model.h"

namespace qpruner::engine {
namespace {

class DistillationLossTest : public ::testing::TestWithParam<DistillationOptions> {};

// By automatic differentiation of at::cross_entropy_loss and at::kl_div, in double.
TEST_P(DistillationLossTest, EqualsItsDefinition) {
  at::Generator generator = at::detail::createCPUGenerator(1);
  const auto noise = [&](at::IntArrayRef shape) {
    return at::empty(shape, at::kDouble).normal_(0, 1, generator);
  };
  at::Tensor hidden = noise({2, 5, 6}).requires_grad_(true);
  const at::Tensor teacher_hidden = noise({2, 5, 6}), head = noise({11, 6}),
                   teacher_head = noise({11, 6});
  at::Tensor targets = at::empty({2, 5}, at::kLong).random_(0, 11, generator);
  targets[0][4] = targets[1][2] = targets[1][3] = targets[1][4] = kNoTarget;

  at::AutoGradMode enable_grad(true);
  const double temperature = GetParam().temperature;
  const at::Tensor logits = at::matmul(hidden, head.t()).view({10, 11});
  const at::Tensor teacher_logits = at::matmul(teacher_hidden, teacher_head.t()).view({10, 11});
  const at::Tensor hard =
      at::cross_entropy_loss(logits, targets.flatten(), {}, at::Reduction::Sum, kNoTarget);
  const at::Tensor soft =
      at::kl_div(at::log_softmax(logits / temperature, -1),
                 at::log_softmax(teacher_logits / temperature, -1), at::Reduction::None,
                 /*log_target=*/true)
          .sum(-1)
          .masked_select(targets.flatten().ne(kNoTarget))
          .sum();
  const at::Tensor expected =
      (1 - GetParam().weight) * hard + GetParam().weight * temperature * temperature * soft;

  at::Tensor gradient;
  const LossSum loss = DistillationLoss(hidden.detach(), head, teacher_hidden, teacher_head,
                                        targets, GetParam(), &gradient);
  EXPECT_EQ(loss.tokens, 6);
  EXPECT_NEAR(loss.nats, expected.item<double>(), 1e-10);
  EXPECT_TRUE(at::allclose(gradient, torch::autograd::grad({expected}, {hidden})[0], 0, 1e-10));
}

INSTANTIATE_TEST_SUITE_P(WeightsAndTemperatures, DistillationLossTest,
                         ::testing::Values(DistillationOptions{0, 1}, DistillationOptions{1, 1},
                                           DistillationOptions{0.5, 1}, DistillationOptions{0.7, 2},
                                           DistillationOptions{1, 0.5}));

TEST(DistillationObjectiveTest, AModelThatIsItsTeacherHasNothingToLearn) {
  MemoryWeightSource model = RandomModel();
  const LoraAdapter adapter = ZeroAdapter(model.config(), {.rank = 2}, at::kCPU);
  DistillationObjective objective(model, model.config().vocab_size, {.weight = 1});
  TrainingBatch second = PlainBatch(RandomBatch({7}, 40, 2));
  second.first_sequence = 2;
  const std::vector<TrainingBatch> batches = {PlainBatch(RandomBatch({9, 5}, 40, 1)), second};
  objective.Begin(batches);
  LoraGradientComputer computer(model, {}, at::kFloat);
  const LoraGradients found = computer.Gradients(adapter, batches, objective);
  EXPECT_NEAR(found.loss, 0, 1e-6);
  // Student and teacher are computed in different ways: to float32's rounding they agree.
  const LoraGradients plain = computer.Gradients(adapter, batches, CrossEntropyObjective());
  for (size_t i = 0; i < plain.gradients.size(); ++i) {
    EXPECT_LE(found.gradients[i].abs().max().item<double>(),
              1e-4 * plain.gradients[i].abs().max().item<double>())
        << i;
  }
}

TEST(DistillationObjectiveTest, WeightZeroIsPlainTraining) {
  MemoryWeightSource model = RandomModel();
  MemoryWeightSource teacher = RandomModel({.seed = 9});
  const LoraAdapter adapter = ZeroAdapter(model.config(), {.rank = 2}, at::kCPU);
  const std::vector<TrainingBatch> batches = {PlainBatch(RandomBatch({9, 5}, 40, 1))};
  DistillationObjective objective(teacher, model.config().vocab_size, {.weight = 0});
  objective.Begin(batches);
  LoraGradientComputer computer(model, {}, at::kFloat);
  const LoraGradients found = computer.Gradients(adapter, batches, objective);
  const LoraGradients plain = computer.Gradients(adapter, batches, CrossEntropyObjective());
  EXPECT_NEAR(found.loss, plain.loss, 1e-6);
  // The two sum in different orders, so an element that cancels to nearly nothing may differ by
  // more than its own size allows (which one depends on the CPU's vectors): the tensor's scale
  // counts.
  for (size_t i = 0; i < plain.gradients.size(); ++i) {
    EXPECT_LE((found.gradients[i] - plain.gradients[i]).abs().max().item<double>(),
              1e-5 * plain.gradients[i].abs().max().item<double>())
        << i;
  }
}

}  // namespace
}  // namespace qpruner::engine
