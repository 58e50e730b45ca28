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

std::vector<TokenIds> RandomSequences(int64_t count, int64_t length, uint64_t seed) {
  const TokenBatch batch = RandomBatch(std::vector<int64_t>(count, length), 40, seed);
  std::vector<TokenIds> sequences;
  for (int64_t row = 0; row < count; ++row) {
    const at::Tensor ids = batch.ids[row].to(at::kInt).contiguous();
    sequences.emplace_back(ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + length);
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
  const TrainerOptions options{.steps = golden["steps"],
                               .learning_rate = golden["learning_rate"],
                               .warmup_steps = golden["warmup_steps"]};
  const AdamWOptions adam_w{.weight_decay = golden["weight_decay"]};
  const auto first_elements = [](const at::Tensor& tensor, size_t count) {
    return tensor.flatten().narrow(0, 0, static_cast<int64_t>(count)).to(at::kDouble);
  };

  AdamWState state;
  for (int64_t step = 0; step < 4; ++step) {
    SCOPED_TRACE(step);
    // In two micro-batches, which must not change the mean over tokens.
    LoraGradients found = ComputeLoraGradients(
        *stories, adapter, {Batch({sequences[0]}), Batch({sequences[1], sequences[2]})});
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
    EXPECT_NEAR(LearningRate(options, step), golden["learning_rates"][step].get<double>(), 1e-12);
    AdamWStep(adam_w, LearningRate(options, step), found.gradients, parameters, state);
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto expected = golden["parameters"][i].get<std::vector<double>>();
    // Parameters are up to 0.05 and have moved by about 0.01.
    EXPECT_TRUE(at::allclose(first_elements(parameters[i], expected.size()),
                             at::tensor(expected, at::kDouble), 0, 2e-5))
        << i;
  }
}

TEST(TrainerTest, GradientsEqualWholeModelAutograd) {
  // The golden steps above cover a model without biases; this one has them.
  MemoryWeightSource model = RandomModel();
  LoraAdapter adapter = ZeroAdapter(model.config(), {.rank = 3, .alpha = 6}, at::kCPU);
  std::vector<at::Tensor> parameters = TrainedParameters(adapter);
  for (at::Tensor& parameter : parameters) parameter.add_(0.05);
  const TokenBatch batch = RandomBatch({9, 4, 7}, 40, 2);

  LoraAdapter leaves = adapter.Clone();
  for (at::Tensor parameter : TrainedParameters(leaves)) parameter.requires_grad_(true);
  int64_t call = 0;
  const at::Tensor logits =
      Logits(model, batch.ids,
             [&](LinearKind kind, const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
               return LoraLinear(leaves, call++ / kLinearKindCount)(kind, x, w, b);
             });
  const at::Tensor loss = at::cross_entropy_loss(
      logits.flatten(0, 1), NextTokenTargets(batch).flatten(), {}, at::Reduction::Mean, kNoTarget);
  const auto expected = torch::autograd::grad({loss}, TrainedParameters(leaves));

  const LoraGradients found = ComputeLoraGradients(model, adapter, {batch});
  EXPECT_NEAR(found.loss, loss.item<double>(), 1e-5);
  ASSERT_EQ(found.gradients.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LT((found.gradients[i] - expected[i]).abs().max().item<double>(),
              1e-4 * expected[i].abs().max().item<double>())
        << i;
  }
}

TEST(TrainerTest, LearningRateWarmsUpAndFalls) {
  const TrainerOptions options{.steps = 30, .learning_rate = 2, .warmup_steps = 10};
  EXPECT_EQ(LearningRate(options, 0), 0);
  EXPECT_DOUBLE_EQ(LearningRate(options, 5), 1);
  EXPECT_DOUBLE_EQ(LearningRate(options, 10), 2);
  EXPECT_DOUBLE_EQ(LearningRate(options, 20), 1);
  EXPECT_NEAR(LearningRate(options, 30), 0, 1e-12);
}

TEST(TrainerTest, PacksWholeSequencesFromAllDocuments) {
  const auto packed = PackDocuments({{1, 2, 3}, {4, 5}, {6, 7, 8, 9}}, 4, 1);
  ASSERT_THAT(packed, SizeIs(2));  // 9 tokens; the last alone predicts nothing.
  EXPECT_THAT(packed[0], SizeIs(4));
  EXPECT_THAT(packed[1], SizeIs(4));
  EXPECT_EQ(packed, PackDocuments({{1, 2, 3}, {4, 5}, {6, 7, 8, 9}}, 4, 1));
  EXPECT_THAT(PackDocuments({{1, 2, 3, 4}, {5, 6}}, 4, 3), SizeIs(2));
  EXPECT_THAT(PackDocuments({}, 4, 1), SizeIs(0));
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
  const TrainerOptions options{
      .steps = 7, .batch_size = 2, .learning_rate = 0.01, .warmup_steps = 2, .evaluate_every = 3};
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

TEST(TrainerTest, RecoversAQuantizedModelAndReturnsTheBest) {
  const auto stories = Stories();
  auto quantized =
      QuantizedSource::Create(*stories, UniformAssignment(stories->config(), {FormatKind::kNf4}));
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  AdapterStart start = StartAdapter(*stories, **quantized, AdapterInit::kLoftq, 1, {.rank = 4});
  // Real text: 4 samples to train on, 2 held out.
  const auto samples = Golden("taylor_stories260k.json")["samples"].get<std::vector<TokenIds>>();
  std::vector<std::vector<int64_t>> held_out;
  for (size_t i = 4; i < 6; ++i) held_out.emplace_back(samples[i].begin(), samples[i].end());
  const std::vector<TokenIds> sequences(samples.begin(), samples.begin() + 4);
  TrainingState state = StartTraining(std::move(start.adapter));
  ASSERT_TRUE(Train(**quantized, sequences, {Batch(held_out)},
                    {.steps = 30, .batch_size = 4, .warmup_steps = 5, .evaluate_every = 5}, state)
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
  EXPECT_EQ(refusal({.steps = 0, .warmup_steps = 0}), "");
  EXPECT_THAT(refusal({.steps = 10, .warmup_steps = 11}), HasSubstr("fine_tune.warmup_steps"));
  EXPECT_THAT(refusal({.batch_size = 0}), HasSubstr("fine_tune.batch_size"));
  EXPECT_THAT(refusal({.learning_rate = 0}), HasSubstr("fine_tune.learning_rate"));
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
            {.steps = 20, .learning_rate = 1e30, .warmup_steps = 0, .evaluate_every = 5}, state);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fine_tune.learning_rate"));
}

}  // namespace
}  // namespace qpruner::engine
