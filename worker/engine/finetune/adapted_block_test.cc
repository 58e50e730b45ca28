#include "worker/engine/finetune/adapted_block.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/finetune/lora_gradients.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/testing/tensor_memory.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int64_t kRank = 3;

std::unique_ptr<WeightSource> Open(const std::string& folder) {
  const char* root = std::getenv("QPRUNER_SOURCE_DIR");
  auto checkpoint = Checkpoint::Open(std::string(root != nullptr ? root : ".") + "/" + folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
}

// B is not zero, so that every gradient is there.
LoraAdapter SomeAdapter(const ModelConfig& config) {
  LoraAdapter adapter = ZeroAdapter(config, {.rank = kRank, .alpha = 2 * kRank}, at::kCPU);
  at::Generator generator = at::detail::createCPUGenerator(5);
  for (at::Tensor parameter : TrainedParameters(adapter)) {
    parameter.add_(at::empty_like(parameter).normal_(0, 0.05, generator));
  }
  return adapter;
}

TrainingPlan Plan(TrainingPlan::Kind kind) { return {.kind = kind}; }

// By automatic differentiation of the whole model, with dropout if asked for.
LoraGradients Reference(WeightSource& model, const LoraAdapter& adapter, const TrainingBatch& batch,
                        const DropoutOptions& dropout = {}) {
  LoraAdapter leaves = adapter.Clone();
  for (at::Tensor parameter : TrainedParameters(leaves)) parameter.requires_grad_(true);
  int64_t call = 0;
  const at::Tensor logits =
      Logits(model, batch.ids,
             [&](LinearKind kind, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
               const int64_t block = call++ / kLinearKindCount;
               const at::Tensor& down = leaves.a[block][kind];
               at::Tensor y = PlainLinear(kind, x, w, b);
               if (!down.defined()) return y;
               at::Tensor dropped = x.reshape({-1, x.size(-1)});
               if (dropout.probability > 0) {
                 const AdapterDropout masks{.probability = dropout.probability,
                                            .seed = dropout.seed,
                                            .step = dropout.step,
                                            .first_sequence = batch.first_sequence,
                                            .length = batch.ids.size(1),
                                            .block = block};
                 dropped = dropped * masks.Apply(kind, at::ones_like(dropped));
               }
               const at::Tensor low = at::linear(dropped, down);
               return y + (at::linear(low, leaves.b[block][kind]) * leaves.scale()).view(y.sizes());
             });
  const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), batch.targets.flatten(), {},
                                                 at::Reduction::Mean, kNoTarget);
  return {loss.item<double>(), torch::autograd::grad({loss}, TrainedParameters(leaves))};
}

void ExpectClose(const LoraGradients& found, const LoraGradients& expected) {
  EXPECT_NEAR(found.loss, expected.loss, 1e-5);
  ASSERT_THAT(found.gradients, SizeIs(expected.gradients.size()));
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    // float32 sums in another order; relative to the largest of the tensor.
    EXPECT_LT((found.gradients[i] - expected.gradients[i]).abs().max().item<double>(),
              2e-4 * expected.gradients[i].abs().max().item<double>() + 1e-9)
        << i;
  }
}

void ExpectSame(const LoraGradients& found, const LoraGradients& expected) {
  EXPECT_EQ(found.loss, expected.loss);
  ASSERT_THAT(found.gradients, SizeIs(expected.gradients.size()));
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    EXPECT_TRUE(at::equal(found.gradients[i], expected.gradients[i])) << i;
  }
}

LoraGradients Compute(WeightSource& model, TrainingPlan::Kind kind, const LoraAdapter& adapter,
                      const std::vector<TrainingBatch>& batches, const DropoutOptions& dropout = {},
                      at::ScalarType dtype = at::kFloat) {
  LoraGradientComputer computer(model, Plan(kind), dtype);
  return computer.Gradients(adapter, batches, CrossEntropyObjective(), dropout);
}

TEST(AdaptedBlockTest, GradientsEqualAutomaticDifferentiation) {
  // Biases and grouped heads; query and key norms; plain Llama with padded heads.
  MemoryWeightSource random = RandomModel();
  const auto qwen3 = Open("tests/golden/logits/tiny-qwen3");
  const auto stories = Open("data/models/stories260k");
  for (WeightSource* model : {static_cast<WeightSource*>(&random), qwen3.get(), stories.get()}) {
    SCOPED_TRACE(model->config().model_type + std::to_string(model->config().hidden_size));
    const LoraAdapter adapter = SomeAdapter(model->config());
    const TrainingBatch batch = PlainBatch(RandomBatch({19, 4, 11}, 40, 2));
    const LoraGradients expected = Reference(*model, adapter, batch);
    ExpectClose(Compute(*model, TrainingPlan::Kind::kResident, adapter, {batch}), expected);
    ExpectClose(Compute(*model, TrainingPlan::Kind::kStreamed, adapter, {batch}), expected);
  }
}

TEST(AdaptedBlockTest, ResidentEqualsStreamedBitForBit) {
  const auto stories = Open("data/models/stories260k");
  const LoraAdapter adapter = SomeAdapter(stories->config());
  std::vector<TrainingBatch> batches;
  for (uint64_t i = 0; i < 3; ++i) {
    batches.push_back(PlainBatch(RandomBatch({64, 64, 50}, 500, i)));
    batches.back().first_sequence = static_cast<int64_t>(3 * i);
  }
  for (const double probability : {0.0, 0.2}) {
    const DropoutOptions dropout{.probability = probability};
    ExpectSame(Compute(*stories, TrainingPlan::Kind::kResident, adapter, batches, dropout),
               Compute(*stories, TrainingPlan::Kind::kStreamed, adapter, batches, dropout));
  }
}

TEST(AdaptedBlockTest, BuffersUsedAgainChangeNothing) {
  MemoryWeightSource model = RandomModel();
  const LoraAdapter adapter = SomeAdapter(model.config());
  const TrainingBatch small = PlainBatch(RandomBatch({9, 4}, 40, 1));
  const TrainingBatch large = PlainBatch(RandomBatch({12, 12, 7}, 40, 2));
  LoraGradientComputer computer(model, Plan(TrainingPlan::Kind::kResident), at::kFloat);
  const CrossEntropyObjective objective;
  const LoraGradients first = computer.Gradients(adapter, {small}, objective);
  const double loss = computer.Loss(adapter, {large}, objective).mean();
  computer.Gradients(adapter, {large}, objective);
  ExpectSame(computer.Gradients(adapter, {small}, objective), first);
  EXPECT_EQ(computer.Loss(adapter, {large}, objective).mean(), loss);
}

TEST(AdaptedBlockTest, OnlyTargetedLinearsAreTrained) {
  MemoryWeightSource model = RandomModel();
  LoraAdapter adapter = SomeAdapter(model.config());
  for (auto* side : {&adapter.a, &adapter.b}) {
    for (PerLinear<at::Tensor>& block : *side) {
      for (LinearKind kind : {LinearKind::kKey, LinearKind::kOutput, LinearKind::kGate}) {
        block[kind] = at::Tensor();
      }
    }
  }
  const TrainingBatch batch = PlainBatch(RandomBatch({19, 4, 11}, 40, 2));
  const LoraGradients found = Compute(model, TrainingPlan::Kind::kResident, adapter, {batch});
  EXPECT_THAT(found.gradients, SizeIs(model.config().num_blocks() * 4 * 2));
  ExpectClose(found, Reference(model, adapter, batch));
}

TEST(AdaptedBlockTest, DropoutEqualsAutomaticDifferentiationWithItsMasks) {
  MemoryWeightSource model = RandomModel();
  const LoraAdapter adapter = SomeAdapter(model.config());
  TrainingBatch batch = PlainBatch(RandomBatch({19, 4, 11}, 40, 2));
  batch.first_sequence = 5;
  const DropoutOptions dropout{.probability = 0.3, .seed = 7, .step = 11};
  ExpectClose(Compute(model, TrainingPlan::Kind::kResident, adapter, {batch}, dropout),
              Reference(model, adapter, batch, dropout));
}

TEST(AdaptedBlockTest, DropoutDoesNotDependOnMicroBatches) {
  MemoryWeightSource model = RandomModel();
  const LoraAdapter adapter = SomeAdapter(model.config());
  const TokenBatch whole = RandomBatch({9, 9, 9}, 40, 2);
  std::vector<TrainingBatch> rows;
  for (const TokenBatch& row : SplitRows(whole)) {
    rows.push_back(PlainBatch(row));
    rows.back().first_sequence = static_cast<int64_t>(rows.size()) - 1;
  }
  const DropoutOptions dropout{.probability = 0.3};
  ExpectClose(Compute(model, TrainingPlan::Kind::kResident, adapter, rows, dropout),
              Compute(model, TrainingPlan::Kind::kResident, adapter, {PlainBatch(whole)}, dropout));
}

TEST(AdaptedBlockTest, DropoutMasksAreFairAndDiffer) {
  AdapterDropout dropout{.probability = 0.25, .length = 100};
  const at::Tensor ones = at::ones({200, 101});
  const at::Tensor mask = dropout.Apply(LinearKind::kQuery, ones);
  const double zeros = mask.eq(0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(zeros, 0.25, 0.01);  // 20,200 draws: a standard deviation is 0.003.
  EXPECT_NEAR(mask.max().item<double>(), 1 / 0.75, 1e-6);
  // Neighbouring rows, columns and streams agree no more often than independent draws (0.625).
  const auto agreement = [](const at::Tensor& x, const at::Tensor& y) {
    return x.eq(y).to(at::kDouble).mean().item<double>();
  };
  EXPECT_NEAR(agreement(mask.narrow(0, 0, 199), mask.narrow(0, 1, 199)), 0.625, 0.015);
  EXPECT_NEAR(agreement(mask.narrow(1, 0, 100), mask.narrow(1, 1, 100)), 0.625, 0.015);
  EXPECT_NEAR(agreement(mask, dropout.Apply(LinearKind::kKey, ones)), 0.625, 0.015);
  dropout.step = 1;
  EXPECT_NEAR(agreement(mask, dropout.Apply(LinearKind::kQuery, ones)), 0.625, 0.015);
  dropout.step = 0;
  EXPECT_TRUE(at::equal(mask, dropout.Apply(LinearKind::kQuery, ones)));
}

TEST(AdaptedBlockTest, Bfloat16GradientsPointTheSameWay) {
  const auto stories = Open("data/models/stories260k");
  const LoraAdapter adapter = SomeAdapter(stories->config());
  const TrainingBatch batch = PlainBatch(RandomBatch({64, 64}, 500, 3));
  const LoraGradients expected = Reference(*stories, adapter, batch);
  const LoraGradients found =
      Compute(*stories, TrainingPlan::Kind::kResident, adapter, {batch}, {}, at::kBFloat16);
  EXPECT_NEAR(found.loss, expected.loss, 0.02 * expected.loss);
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    EXPECT_EQ(found.gradients[i].scalar_type(), at::kFloat);
    // 8 bits of mantissa through five blocks.
    EXPECT_GT(
        at::cosine_similarity(found.gradients[i].flatten(), expected.gradients[i].flatten(), 0)
            .item<double>(),
        0.99)
        << i;
  }
}

// Enough for any plan: what it then expects is what it needs.
constexpr int64_t kAmple = int64_t{1} << 40;

TEST(TrainingPlanTest, IsResidentWhereItFitsAndCountsWhatTapesHold) {
  // Large enough that a block is little of it.
  MemoryWeightSource model = RandomModel({.blocks = 12, .hidden = 64});
  TrainingPlanOptions options{.rank = kRank,
                              .batch_size = 3,
                              .micro_batch_size = 3,
                              .sequence_length = 20,
                              .memory_limit_bytes = kAmple};
  const auto ample = PlanTraining(model.config(), options);
  ASSERT_TRUE(ample.ok()) << ample.status();
  EXPECT_EQ(ample->kind, TrainingPlan::Kind::kResident);
  EXPECT_EQ(ample->micro_batch_size, 3);
  EXPECT_EQ(ample->expected_bytes,
            ample->weight_bytes + ample->activation_bytes + ample->other_bytes);
  options.memory_limit_bytes = ample->expected_bytes;
  EXPECT_EQ(PlanTraining(model.config(), options)->kind, TrainingPlan::Kind::kResident);
  --options.memory_limit_bytes;
  const auto tight = PlanTraining(model.config(), options);
  ASSERT_TRUE(tight.ok()) << tight.status();
  EXPECT_EQ(tight->kind, TrainingPlan::Kind::kStreamed);
  EXPECT_EQ(tight->micro_batch_size, 3);
  EXPECT_LE(tight->expected_bytes, options.memory_limit_bytes);
  // A held-out batch has the activations of one block; objective and base what they say.
  options.memory_limit_bytes = kAmple;
  options.held_out_tokens = options.held_out_length = 60;
  options.objective = {.fixed_bytes = 1000, .token_bytes = 7};
  options.base_bytes = 5;
  EXPECT_EQ(PlanTraining(model.config(), options)->other_bytes,
            ample->other_bytes + ample->activation_bytes / 12 + 1000 + 7 * 60 + 5);

  const RotaryTables rotary = MakeRotaryTables(model.config(), 20, at::kCPU, at::kFloat);
  const LoraAdapter adapter = SomeAdapter(model.config());
  int64_t held = 0;
  at::Tensor hidden = at::ones({3, 20, model.config().hidden_size});
  for (int64_t block = 0; block < model.config().num_blocks(); ++block) {
    AdaptedBlock adapted(model.config(), model.config().blocks[block], model.Block(block),
                         at::kFloat);
    adapted.SetAdapter(adapter, block);
    BlockTape tape;
    hidden = adapted.Forward(hidden, rotary, nullptr, tape);
    held += tape.bytes();
  }
  EXPECT_LE(held, ample->activation_bytes);
  EXPECT_GE(held, ample->activation_bytes * 9 / 10);
}

TEST(TrainingPlanTest, TakesFewerSequencesAtATimeBeforeItRefuses) {
  MemoryWeightSource model = RandomModel({.blocks = 12, .hidden = 64});
  TrainingPlanOptions options{.rank = kRank,
                              .batch_size = 6,
                              .micro_batch_size = 8,
                              .sequence_length = 500,
                              .held_out_tokens = 4000,
                              .held_out_length = 900};
  std::vector<int64_t> sizes, held_out;
  int64_t limit = kAmple;
  absl::StatusOr<TrainingPlan> plan;
  // Each time one byte less than the last plan needs.
  while (options.memory_limit_bytes = limit, (plan = PlanTraining(model.config(), options)).ok()) {
    EXPECT_LE(plan->expected_bytes, limit);
    if (plan->kind == TrainingPlan::Kind::kStreamed) {
      sizes.push_back(plan->micro_batch_size);
      held_out.push_back(plan->held_out_tokens);
    }
    limit = plan->expected_bytes - 1;
  }
  EXPECT_THAT(sizes, ElementsAre(6, 3, 1, 1));
  EXPECT_THAT(held_out, ElementsAre(4000, 2000, 1000, 900));
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& part :
       {std::string("fine_tune.sequence_length"), std::string("limits.device_memory_bytes"),
        std::to_string(limit + 1)}) {
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(part));
  }
}

TEST(TrainingPlanTest, TrainingHoldsNoMoreThanItCounts) {
  MemoryWeightSource model = RandomModel(
      {.blocks = 4, .hidden = 128, .head_dim = 16, .heads = 8, .kv_heads = 8, .intermediate = 256});
  const LoraAdapter adapter = SomeAdapter(model.config());
  const std::vector<TrainingBatch> batches = {PlainBatch(RandomBatch({128, 128}, 40, 1)),
                                              PlainBatch(RandomBatch({128, 128}, 40, 2))};
  const TrainingBatch held_out = PlainBatch(RandomBatch({300}, 40, 3));
  const TrainingPlanOptions options{.rank = kRank,
                                    .batch_size = 2,
                                    .micro_batch_size = 2,
                                    .sequence_length = 128,
                                    .held_out_tokens = 300,
                                    .held_out_length = 300,
                                    .memory_limit_bytes = kAmple};
  const auto ample = PlanTraining(model.config(), options);
  ASSERT_TRUE(ample.ok()) << ample.status();
  TrainingPlanOptions short_options = options;
  short_options.memory_limit_bytes = ample->expected_bytes - 1;
  const auto tight = PlanTraining(model.config(), short_options);
  ASSERT_TRUE(tight.ok()) << tight.status();
  ASSERT_EQ(tight->kind, TrainingPlan::Kind::kStreamed);
  for (const TrainingPlan& plan : {*ample, *tight}) {
    // The process is no part of what is measured; the objective's logits of 40 tokens are nothing.
    const int64_t expected = plan.expected_bytes - (int64_t{64} << 20);
    const int64_t peak = PeakTensorBytes([&] {
      LoraGradientComputer computer(model, plan, at::kFloat);
      computer.Gradients(adapter, batches, CrossEntropyObjective());
      computer.Loss(adapter, {held_out}, CrossEntropyObjective());
    });
    EXPECT_LE(peak, expected) << plan.Describe();
    EXPECT_GT(peak, expected / 2) << plan.Describe();
  }
}

}  // namespace
}  // namespace qpruner::engine
