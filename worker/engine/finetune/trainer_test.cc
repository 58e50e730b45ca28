#include "worker/engine/finetune/trainer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "nlohmann/json.hpp"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/lora_gradients.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

std::string SourceDir() {
  const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
  return folder != nullptr ? folder : ".";
}

nlohmann::json Golden(const std::string& name) {
  std::ifstream file(SourceDir() + "/tests/golden/" + name);
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

std::unique_ptr<WeightSource> Stories() {
  auto checkpoint = Checkpoint::Open(SourceDir() + "/data/models/stories260k");
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
}

TokenBatch Batch(const std::vector<std::vector<int64_t>>& sequences) {
  size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  TokenBatch batch;
  const auto rows = static_cast<int64_t>(sequences.size());
  batch.ids = at::zeros({rows, static_cast<int64_t>(longest)}, at::kLong);
  batch.lengths = at::zeros({rows}, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    const auto length = static_cast<int64_t>(sequences[row].size());
    batch.ids[row].narrow(0, 0, length).copy_(at::tensor(sequences[row], at::kLong));
    batch.lengths[row] = length;
    batch.rows.push_back(row);
  }
  return batch;
}

std::vector<TrainingSequence> RandomSequences(int64_t count, int64_t length, uint64_t seed) {
  const TokenBatch batch = RandomBatch(std::vector<int64_t>(count, length), 40, seed);
  std::vector<TrainingSequence> sequences;
  for (int64_t row = 0; row < count; ++row) {
    const at::Tensor ids = batch.ids[row].to(at::kInt).contiguous();
    sequences.push_back({.ids = {ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + length}});
  }
  return sequences;
}

// PEFT, transformers and torch.optim.AdamW on stories260k: see tests/compat/lora_golden.py.
TEST(TrainerTest, StepsEqualPeftAndTorch) {
  const nlohmann::json golden = Golden("lora_peft.json");
  const auto stories = Stories();
  LoraAdapter adapter =
      ZeroAdapter(stories->config(), {.rank = golden["rank"], .alpha = golden["alpha"]}, at::kCPU);
  std::vector<at::Tensor> parameters = TrainedParameters(adapter);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double block = static_cast<double>(i / (2 * kLinearKindCount));
    const double kind = static_cast<double>(i / 2 % kLinearKindCount);
    const at::Tensor n = at::arange(parameters[i].numel(), at::kDouble);
    parameters[i].copy_((0.05 * at::sin(0.37 * n + (1.3 * kind + 2.1 * block + 0.5 * (i % 2))))
                            .view(parameters[i].sizes()));
  }
  const auto sequences = golden["sequences"].get<std::vector<std::vector<int64_t>>>();
  const TokenBatch batch = Batch(sequences);
  const LearningRateOptions rate{.peak = golden["learning_rate"],
                                 .warmup_steps = golden["warmup_steps"],
                                 .steps = golden["steps"]};
  LoraGradientComputer computer(*stories, {.kind = TrainingPlan::Kind::kResident}, at::kFloat);
  const AdamWOptions adam_w{.weight_decay = golden["weight_decay"]};
  const auto first_elements = [](const at::Tensor& tensor, size_t count) {
    return tensor.flatten().narrow(0, 0, static_cast<int64_t>(count)).to(at::kDouble);
  };

  AdamWState state;
  for (int64_t step = 0; step < 4; ++step) {
    SCOPED_TRACE(step);
    // In two micro-batches, which must not change the mean over tokens.
    LoraGradients found = computer.Gradients(
        adapter,
        {PlainBatch(Batch({sequences[0]})), PlainBatch(Batch({sequences[1], sequences[2]}))},
        CrossEntropyObjective());
    EXPECT_NEAR(found.loss, golden["losses"][step].get<double>(), 1e-5);
    if (step == 0) {
      for (size_t i = 0; i < parameters.size(); ++i) {
        const auto expected = golden["first_gradients"][i].get<std::vector<double>>();
        const double scale = found.gradients[i].abs().max().item<double>();
        EXPECT_TRUE(at::allclose(first_elements(found.gradients[i], expected.size()),
                                 at::tensor(expected, at::kDouble), 0, 1e-4 * scale))
            << i;
      }
    }
    const double norm = golden["gradient_norms"][step];
    EXPECT_NEAR(ClipGradientNorm(found.gradients, golden["max_gradient_norm"]), norm, 1e-4 * norm);
    EXPECT_NEAR(LearningRate(rate, step), golden["learning_rates"][step].get<double>(), 1e-12);
    AdamWStep(adam_w, LearningRate(rate, step), found.gradients, parameters, state);
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto expected = golden["parameters"][i].get<std::vector<double>>();
    // Parameters are up to 0.05 and have moved by about 0.01.
    EXPECT_TRUE(at::allclose(first_elements(parameters[i], expected.size()),
                             at::tensor(expected, at::kDouble), 0, 2e-5))
        << i;
  }
}

TEST(TrainerTest, LearningRateWarmsUpAndFalls) {
  LearningRateOptions rate{.peak = 2, .warmup_steps = 10, .steps = 30};
  EXPECT_EQ(LearningRate(rate, 0), 0);
  EXPECT_DOUBLE_EQ(LearningRate(rate, 5), 1);
  EXPECT_DOUBLE_EQ(LearningRate(rate, 10), 2);
  EXPECT_DOUBLE_EQ(LearningRate(rate, 20), 1);
  EXPECT_NEAR(LearningRate(rate, 30), 0, 1e-12);
  rate.schedule = LearningRateSchedule::kLinear;
  EXPECT_DOUBLE_EQ(LearningRate(rate, 5), 1);
  EXPECT_DOUBLE_EQ(LearningRate(rate, 25), 0.5);
  EXPECT_DOUBLE_EQ(LearningRate(rate, 30), 0);
  rate.schedule = LearningRateSchedule::kConstant;
  EXPECT_DOUBLE_EQ(LearningRate(rate, 5), 1);
  EXPECT_DOUBLE_EQ(LearningRate(rate, 29), 2);
}

TEST(TrainerTest, PacksWholeSequencesFromAllDocuments) {
  const auto packed = PackDocuments({{{1, 2, 3}}, {{4, 5}}, {{6, 7, 8, 9}}}, 4, 1);
  ASSERT_THAT(packed, SizeIs(2));  // 9 tokens; the last alone predicts nothing.
  EXPECT_THAT(packed[0].ids, SizeIs(4));
  EXPECT_THAT(packed[1].ids, SizeIs(4));
  EXPECT_EQ(packed, PackDocuments({{{1, 2, 3}}, {{4, 5}}, {{6, 7, 8, 9}}}, 4, 1));
  EXPECT_THAT(PackDocuments({{{1, 2, 3, 4}}, {{5, 6}}}, 4, 3), SizeIs(2));
  EXPECT_THAT(PackDocuments({}, 4, 1), SizeIs(0));
}

TEST(TrainerTest, MaskedTokensAreReadButNotPredicted) {
  const auto batches =
      MakeTrainingBatches({{{1, 2, 3, 4}, 2}, {{5, 6}}, {{7, 8}, 1}}, {1, 0, 2}, 2);
  ASSERT_THAT(batches, SizeIs(2));
  const int64_t n = kNoTarget;
  EXPECT_TRUE(
      at::equal(batches[0].ids, at::tensor({5, 6, 0, 0, 1, 2, 3, 4}, at::kLong).view({2, 4})));
  EXPECT_TRUE(at::equal(
      batches[0].targets,
      at::tensor({int64_t{6}, n, n, n, n, int64_t{3}, int64_t{4}, n}, at::kLong).view({2, 4})));
  EXPECT_TRUE(at::equal(batches[1].targets, at::tensor({int64_t{8}, n}, at::kLong).view({1, 2})));
  EXPECT_EQ(batches[1].first_sequence, 2);
}

TEST(TrainerTest, EachEpochTakesEverySequenceOnce) {
  std::vector<int64_t> first, second;
  for (int64_t step = 0; step < 10; ++step) {  // 20 of batches of 2: 4 epochs of 5.
    for (int64_t i : SequencesOfStep(5, 2, 7, step)) {
      (first.size() < 5 ? first : second).push_back(i);
    }
  }
  EXPECT_THAT(first, UnorderedElementsAre(0, 1, 2, 3, 4));
  EXPECT_NE(first, std::vector<int64_t>(second.begin(), second.begin() + 5));
  second.resize(5);
  EXPECT_THAT(second, UnorderedElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(SequencesOfStep(1, 3, 7, 0), ElementsAre(0, 0, 0));
}

TEST(TrainerTest, StoppedAndContinuedEqualsUndisturbed) {
  MemoryWeightSource model = RandomModel();
  const auto sequences = RandomSequences(5, 10, 3);
  const std::vector<TokenBatch> held_out = {RandomBatch({10, 10}, 40, 4)};
  const TrainerOptions options{.batch_size = 2,
                               .learning_rate = {.peak = 0.01, .warmup_steps = 2, .steps = 7},
                               .dropout = 0.1,
                               .evaluate_every = 3};
  const auto start = [&] {
    return StartTraining(ZeroAdapter(model.config(), {.rank = 2, .alpha = 4}, at::kCPU));
  };
  TrainingState whole = start();
  int64_t calls = 0;
  ASSERT_TRUE(Train(model, sequences, held_out, options, whole,
                    [&](const TrainingProgress& progress, const TrainingState& state) {
                      EXPECT_EQ(progress.step, calls++);
                      return true;
                    })
                  .ok());
  EXPECT_EQ(calls, 8);
  ASSERT_THAT(whole.curve, SizeIs(4));  // 0, 3, 6, 7
  EXPECT_FALSE(whole.curve[0].train_loss.has_value());
  EXPECT_EQ(whole.curve[3].step, 7);

  TrainingState checkpoint;
  TrainingState stopped = start();
  ASSERT_TRUE(Train(model, sequences, held_out, options, stopped,
                    [&](const TrainingProgress& progress, const TrainingState& state) {
                      if (progress.step == 4) checkpoint = state.Clone();
                      return progress.step < 5;
                    })
                  .ok());
  EXPECT_EQ(stopped.step, 5);
  ASSERT_TRUE(Train(model, sequences, held_out, options, checkpoint).ok());
  EXPECT_EQ(checkpoint.best_step, whole.best_step);
  ASSERT_THAT(checkpoint.curve, SizeIs(4));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(checkpoint.curve[i].held_out_loss, whole.curve[i].held_out_loss);
    EXPECT_EQ(checkpoint.curve[i].train_loss, whole.curve[i].train_loss);
  }
  const auto expected = TrainedParameters(whole.best);
  const auto found = TrainedParameters(checkpoint.best);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(found[i], expected[i]));
}

// Fewer sequences at a time are the same sums in another order.
TEST(TrainerTest, ShortMemoryChangesTheCurveByRoundingAlone) {
  MemoryWeightSource model = RandomModel({.blocks = 4, .hidden = 64, .intermediate = 96});
  const auto sequences = RandomSequences(8, 100, 3);
  const std::vector<TokenBatch> held_out = {RandomBatch({100, 90, 80, 70}, 40, 4)};
  TrainerOptions options{.batch_size = 4,
                         .micro_batch_size = 4,
                         .sequence_length = 100,
                         .learning_rate = {.peak = 0.01, .warmup_steps = 0, .steps = 4},
                         .evaluate_every = 2};
  const auto train = [&](int64_t limit) {
    options.memory_limit_bytes = limit;
    TrainingState state = StartTraining(ZeroAdapter(model.config(), {.rank = 2}, at::kCPU));
    EXPECT_TRUE(Train(model, sequences, held_out, options, state).ok());
    return state;
  };
  const auto plan = [&](int64_t limit) {
    options.memory_limit_bytes = limit;
    return PlanOf(model.config(), 2, at::kCPU, options, ShapeOf(held_out));
  };
  int64_t limit = plan(int64_t{1} << 40)->expected_bytes;
  const TrainingState ample = train(limit);
  for (auto smaller = plan(limit); smaller.ok(); smaller = plan(smaller->expected_bytes - 1)) {
    limit = smaller->expected_bytes;
  }
  ASSERT_EQ(plan(limit)->micro_batch_size, 1);
  ASSERT_EQ(plan(limit)->held_out_tokens, 100);
  const TrainingState tight = train(limit);
  ASSERT_THAT(tight.curve, SizeIs(ample.curve.size()));
  for (size_t i = 0; i < ample.curve.size(); ++i) {
    EXPECT_NEAR(tight.curve[i].held_out_loss, ample.curve[i].held_out_loss, 1e-5);
  }

  options.memory_limit_bytes = limit - 1;
  TrainingState state = StartTraining(ZeroAdapter(model.config(), {.rank = 2}, at::kCPU));
  EXPECT_EQ(Train(model, sequences, held_out, options, state).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TrainerTest, RecoversAQuantizedModelAndReturnsTheBest) {
  const auto stories = Stories();
  auto quantized = QuantizedSource::Create(
      *stories, UniformAssignment(stories->config(), Format::NormalFloat(4)));
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  AdapterStart start = StartAdapter(*stories, **quantized, AdapterInit::kLoftq, 1, {.rank = 4});
  // Real text: 4 samples to train on, 2 held out.
  const auto samples = Golden("taylor_stories260k.json")["samples"].get<std::vector<TokenIds>>();
  std::vector<std::vector<int64_t>> held_out;
  for (size_t i = 4; i < 6; ++i) held_out.emplace_back(samples[i].begin(), samples[i].end());
  std::vector<TrainingSequence> sequences;
  for (size_t i = 0; i < 4; ++i) sequences.push_back({.ids = samples[i]});
  TrainingState state = StartTraining(std::move(start.adapter));
  ASSERT_TRUE(
      Train(
          **quantized, sequences, {Batch(held_out)},
          {.batch_size = 4, .learning_rate = {.warmup_steps = 5, .steps = 30}, .evaluate_every = 5},
          state)
          .ok());
  EXPECT_LT(*state.curve.back().train_loss, *state.curve[1].train_loss - 0.1);
  double lowest = INFINITY;
  for (const CurvePoint& point : state.curve) lowest = std::min(lowest, point.held_out_loss);
  MergedSource best(**quantized, state.best);
  EXPECT_NEAR(NextTokenLoss(best, {Batch(held_out)}).mean(), lowest, 1e-5);
  // No matter how hard 4 samples are memorized, what comes back is not worse than the start.
  EXPECT_LE(lowest, state.curve.front().held_out_loss);
}

TEST(TrainerTest, RefusalsNameTheField) {
  const auto refusal = [](const TrainerOptions& options) {
    return std::string(CheckTrainer(options).message());
  };
  EXPECT_EQ(refusal({}), "");
  EXPECT_EQ(refusal({.learning_rate = {.warmup_steps = 0, .steps = 0}}), "");
  EXPECT_THAT(refusal({.learning_rate = {.warmup_steps = 11, .steps = 10}}),
              HasSubstr("fine_tune.warmup_steps"));
  EXPECT_THAT(refusal({.batch_size = 0}), HasSubstr("fine_tune.batch_size"));
  EXPECT_THAT(refusal({.learning_rate = {.peak = 0}}), HasSubstr("fine_tune.learning_rate"));
  EXPECT_THAT(refusal({.dropout = 1}), HasSubstr("fine_tune.dropout"));
  MemoryWeightSource model = RandomModel();
  TrainingState state = StartTraining(ZeroAdapter(model.config(), {.rank = 2}, at::kCPU));
  EXPECT_THAT(std::string(Train(model, {}, {RandomBatch({4}, 40, 1)}, {}, state).message()),
              HasSubstr("fine-tuning share"));
}

TEST(TrainerTest, DivergenceIsSaidWhereItHappens) {
  MemoryWeightSource model = RandomModel();
  TrainingState state = StartTraining(ZeroAdapter(model.config(), {.rank = 2}, at::kCPU));
  const absl::Status status =
      Train(model, RandomSequences(2, 8, 1), {RandomBatch({8}, 40, 1)},
            {.learning_rate = {.peak = 1e30, .warmup_steps = 0, .steps = 20}, .evaluate_every = 5},
            state);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fine_tune.learning_rate"));
}

}  // namespace
}  // namespace qpruner::engine
