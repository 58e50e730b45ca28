// Every walk of the engine on every device, against the same walk on the CPU in double precision.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/engine/calibrate/input_moments.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/distillation.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/prune/width_search.h"
#include "worker/engine/quantize/gptq.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/score/gradient_score.h"
#include "worker/engine/score/sensitivity.h"
#include "worker/engine/testing/device_fixture.h"

namespace qpruner::engine {
namespace {

// Products of hundreds of float32 terms, in another order.
constexpr double kFloatTolerance = 2e-4;

class EngineOnDeviceTest : public OnDevice {
 protected:
  EngineOnDeviceTest() {
    at::set_num_threads(1);  // A small model: threads would only wait for each other.
    const char* folder = std::getenv("QPRUNER_SOURCE_DIR");
    checkpoint_ = *Checkpoint::Open(std::string(folder != nullptr ? folder : ".") +
                                    "/data/models/stories260k");
    reference_ = MakeCheckpointSource(checkpoint_, at::kCPU, at::kDouble);
    source_ = MakeCheckpointSource(checkpoint_, device(), at::kFloat);
  }

  static void ExpectNear(const at::Tensor& found, const at::Tensor& expected,
                         const std::string& what) {
    const at::Tensor on_host = found.to(at::kCPU, at::kDouble);
    const double scale = expected.abs().max().item<double>();
    EXPECT_LE((on_host - expected).abs().max().item<double>(), kFloatTolerance * scale) << what;
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<WeightSource> reference_, source_;
  const std::vector<TokenBatch> batches_ = {RandomBatch({48, 30}, 512, 5),
                                            RandomBatch({20}, 512, 6)};
};

QPRUNER_ON_EVERY_DEVICE(EngineOnDeviceTest);

TEST_P(EngineOnDeviceTest, Forward) {
  const auto expected = ForwardHidden(*reference_, BatchIds(batches_));
  const auto streamed = ForwardHidden(*source_, BatchIds(batches_));
  MemoryWeightSource resident = LoadIntoMemory(*source_);
  const auto loaded = ForwardHidden(resident, BatchIds(batches_));
  for (size_t i = 0; i < batches_.size(); ++i) {
    ExpectNear(streamed[i], expected[i], "streamed");
    EXPECT_TRUE(at::equal(loaded[i], streamed[i]));
  }
}

TEST_P(EngineOnDeviceTest, Importance) {
  for (const ImportanceMethod method : {ImportanceMethod::kL2, ImportanceMethod::kTaylorMixed}) {
    const auto expected = ScoreChannels(*reference_, batches_, method);
    const auto found = ScoreChannels(*source_, batches_, method);
    for (size_t block = 0; block < found.size(); ++block) {
      for (const LinearKind kind : kLinearKinds) {
        ExpectNear(found[block][kind], expected[block][kind],
                   LinearName(static_cast<int64_t>(block), kind));
      }
    }
  }
}

TEST_P(EngineOnDeviceTest, PruningAndEvaluation) {
  const auto importance = ScoreGroups(*reference_, batches_, {});
  const auto plan = MakePruningPlan(checkpoint_->config(), importance, {.ratio = 0.25});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto measure = [&](WeightSource& source) {
    const ReferenceStates original{ForwardHidden(source, BatchIds(batches_)), source.Head()};
    PrunedSource pruned(source, *plan);
    return EvaluateModel(pruned, batches_, &original);
  };
  const TokenMetrics expected = measure(*reference_), found = measure(*source_);
  EXPECT_EQ(found.token_count, expected.token_count);
  EXPECT_NEAR(found.mean_nll(), expected.mean_nll(), 1e-4);
  EXPECT_NEAR(found.mean_kl(), expected.mean_kl(), 1e-4);
}

TEST_P(EngineOnDeviceTest, QuantizedWeightsAreTheSame) {
  FormatAssignment assignment;
  for (int64_t block = 0; block < checkpoint_->config().num_blocks(); ++block) {
    for (const LinearKind kind : kLinearKinds) {
      assignment[LinearName(block, kind)] =
          block % 2 == 0 ? Format::NormalFloat(4) : Format::Integer8Row();
    }
  }
  const auto on_host = MakeCheckpointSource(checkpoint_, at::kCPU, at::kFloat);
  const auto expected = QuantizedSource::Create(*on_host, assignment);
  const auto found = QuantizedSource::Create(*source_, assignment);
  ASSERT_TRUE(expected.ok() && found.ok());
  for (int64_t block = 0; block < 2; ++block) {
    const BlockWeights a = (*expected)->Block(block), b = (*found)->Block(block);
    for (const LinearKind kind : kLinearKinds) {
      EXPECT_EQ(b.weight[kind].device(), device());
      EXPECT_TRUE(at::equal(a.weight[kind], b.weight[kind].to(at::kCPU)))
          << LinearName(block, kind);
    }
  }
}

TEST_P(EngineOnDeviceTest, LayerScores) {
  const auto groups =
      MakeSearchGroups(checkpoint_->config().num_blocks(), SearchGranularity::kBlock);
  const std::vector<Format> formats = {Format::NormalFloat(4)};
  const auto on_host = MakeCheckpointSource(checkpoint_, at::kCPU, at::kFloat);
  const auto kl = MeasureSensitivity(*source_, batches_, groups, formats);
  const auto expected_kl = MeasureSensitivity(*on_host, batches_, groups, formats);
  const auto gradient = ScoreByGradient(*source_, batches_, groups, formats);
  const auto expected_gradient = ScoreByGradient(*on_host, batches_, groups, formats);
  for (size_t group = 0; group < groups.size(); ++group) {
    // Differences of float32 log-probabilities.
    EXPECT_NEAR(kl[group][0], expected_kl[group][0], 1e-3 * expected_kl[group][0] + 2e-6);
    EXPECT_NEAR(gradient[group][0], expected_gradient[group][0],
                1e-3 * expected_gradient[group][0]);
  }
}

TEST_P(EngineOnDeviceTest, Gptq) {
  const std::vector<Format> formats = {Format::IntegerGroup(4, 32)};
  const auto quantize = [&](WeightSource& source) {
    std::vector<at::Tensor> weights;
    WalkInputMoments(
        source, batches_, [&](int64_t, const BlockWeights& block, const InputMoments& moments) {
          for (const LinearKind kind : {LinearKind::kQuery, LinearKind::kUp}) {
            weights.push_back(
                Dequantize(QuantizeGptq(block.weight[kind], moments[kind], formats).front(),
                           at::kFloat, at::kCPU));
          }
        });
    return weights;
  };
  const auto on_host = MakeCheckpointSource(checkpoint_, at::kCPU, at::kFloat);
  const std::vector<at::Tensor> expected = quantize(*on_host), found = quantize(*source_);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    // A weight between two codes may fall to the other one, and those after it make up for it.
    const double error = (found[i] - expected[i]).norm().item<double>();
    EXPECT_LT(error, 0.02 * expected[i].norm().item<double>()) << i;
  }
}

TEST_P(EngineOnDeviceTest, LoftqFineTuningAndDistillation) {
  const auto train = [&](WeightSource& source) {
    const auto base =
        QuantizedSource::Create(source, UniformAssignment(source.config(), Format::NormalFloat(4)));
    AdapterStart start =
        StartAdapter(source, **base, AdapterInit::kLoftq, 1, {.rank = 4, .alpha = 8});
    TrainingState state = StartTraining(std::move(start.adapter));
    std::vector<TrainingSequence> sequences;
    const at::Tensor ids = RandomBatch({32, 32, 32, 32}, 512, 7).ids.to(at::kInt);
    for (int64_t row = 0; row < ids.size(0); ++row) {
      const int32_t* const first = ids[row].const_data_ptr<int32_t>();
      sequences.push_back({.ids = {first, first + ids.size(1)}});
    }
    DistillationObjective objective(source, source.config().vocab_size, {.weight = 0.5});
    const TrainerOptions options{.batch_size = 4,
                                 .micro_batch_size = 2,
                                 .sequence_length = 32,
                                 .learning_rate = {.peak = 1e-3, .warmup_steps = 1, .steps = 4},
                                 .evaluate_every = 2};
    const absl::Status trained = Train(**base, sequences, batches_, options, state, {}, &objective);
    EXPECT_TRUE(trained.ok()) << trained;
    return state.curve;
  };
  const auto on_host = MakeCheckpointSource(checkpoint_, at::kCPU, at::kFloat);
  const auto expected = train(*on_host), found = train(*source_);
  ASSERT_EQ(found.size(), 3u);
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i].held_out_loss, expected[i].held_out_loss, 1e-3) << i;
  }
  EXPECT_LT(found.back().held_out_loss, found.front().held_out_loss);
}

}  // namespace
}  // namespace qpruner::engine
