#include "worker/engine/finetune/training_checkpoint.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/durable_file.h"
#include "worker/engine/finetune/lora_gradients.h"
#include "worker/engine/gradient/random_model.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class TrainingCheckpointTest : public ::testing::Test {
 protected:
  TrainingCheckpointTest() {
    char pattern[] = "/tmp/qpruner_training_checkpoint_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    path_ = folder_ + "/training.safetensors";
    for (uint64_t i = 0; i < 6; ++i) {
      const TokenBatch batch = RandomBatch({12}, 40, i);
      const at::Tensor ids = batch.ids[0].to(at::kInt).contiguous();
      sequences_.push_back({.ids = {ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + 12}});
    }
  }
  ~TrainingCheckpointTest() override { std::filesystem::remove_all(folder_); }

  TrainingState Start(int64_t rank = 2) {
    return StartTraining(
        ZeroAdapter(model_.config(), {.rank = rank, .alpha = 0.1 + 2 * rank}, at::kCPU));
  }
  // Until `stop` steps are done.
  void TrainTo(int64_t stop, TrainingState& state) {
    const TrainerOptions options{.batch_size = 4,
                                 .micro_batch_size = 3,
                                 .learning_rate = {.peak = 0.01, .warmup_steps = 5, .steps = 40},
                                 .adam_w = {.weight_decay = 0.01},
                                 .dropout = 0.1,
                                 .evaluate_every = 7};
    const absl::Status trained =
        Train(model_, sequences_, {RandomBatch({12, 9}, 40, 9)}, options, state,
              [&](const TrainingProgress& at, const TrainingState&) { return at.step < stop; });
    ASSERT_TRUE(trained.ok()) << trained;
    EXPECT_EQ(state.step, stop);
  }
  std::string Refusal(const TrainingState& start) {
    return std::string(ReadTrainingCheckpoint(path_, start).status().message());
  }

  MemoryWeightSource model_ = RandomModel();
  std::vector<TrainingSequence> sequences_;
  std::string folder_;
  std::string path_;
};

void ExpectSame(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& expected) {
  ASSERT_THAT(found, SizeIs(expected.size()));
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(found[i], expected[i])) << i;
}

TEST_F(TrainingCheckpointTest, AResumedRunIsTheUndisturbedOneBitForBit) {
  TrainingState whole = Start();
  TrainTo(40, whole);

  TrainingState first = Start();
  TrainTo(17, first);
  ASSERT_TRUE(WriteTrainingCheckpoint(path_, first).ok());
  auto resumed = ReadTrainingCheckpoint(path_, Start());
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  TrainTo(40, *resumed);

  ASSERT_THAT(resumed->curve, SizeIs(whole.curve.size()));
  for (size_t i = 0; i < whole.curve.size(); ++i) {
    EXPECT_EQ(resumed->curve[i].step, whole.curve[i].step);
    EXPECT_EQ(resumed->curve[i].train_loss, whole.curve[i].train_loss);
    EXPECT_EQ(resumed->curve[i].held_out_loss, whole.curve[i].held_out_loss);
  }
  EXPECT_EQ(resumed->best_step, whole.best_step);
  ExpectSame(TrainedParameters(resumed->adapter), TrainedParameters(whole.adapter));
  ExpectSame(TrainedParameters(resumed->best), TrainedParameters(whole.best));
  ExpectSame(resumed->optimizer.mean, whole.optimizer.mean);
  ExpectSame(resumed->optimizer.square_mean, whole.optimizer.square_mean);
}

TEST_F(TrainingCheckpointTest, TheSameStateGivesTheSameFile) {
  TrainingState state = Start();
  TrainTo(3, state);
  ASSERT_TRUE(WriteTrainingCheckpoint(path_, state).ok());
  ASSERT_TRUE(
      WriteTrainingCheckpoint(folder_ + "/again", *ReadTrainingCheckpoint(path_, Start())).ok());
  EXPECT_EQ(*ReadFile(path_, 1 << 24), *ReadFile(folder_ + "/again", 1 << 24));
}

TEST_F(TrainingCheckpointTest, AnotherRunsFileIsRefused) {
  EXPECT_EQ(ReadTrainingCheckpoint(path_, Start()).status().code(), absl::StatusCode::kNotFound);
  TrainingState state = Start();
  TrainTo(3, state);
  ASSERT_TRUE(WriteTrainingCheckpoint(path_, state).ok());
  EXPECT_THAT(Refusal(Start(3)), HasSubstr("rank 2"));
  LoraAdapter few = ZeroAdapter(
      model_.config(), {.rank = 2, .alpha = 4.1, .targets = {LinearKind::kQuery}}, at::kCPU);
  EXPECT_THAT(Refusal(StartTraining(few)), HasSubstr("another type or shape"));
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 1);
  EXPECT_EQ(ReadTrainingCheckpoint(path_, Start()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qpruner::engine
