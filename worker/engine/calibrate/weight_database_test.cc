#include "worker/engine/calibrate/weight_database.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/calibrate/input_moments.h"
#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

class WeightDatabaseTest : public ::testing::Test {
 protected:
  WeightDatabaseTest()
      : folder_(std::filesystem::path(::testing::TempDir()) / "weight_database"),
        model_(RandomModel({.hidden = 32, .intermediate = 48})),
        batches_({RandomBatch({30, 24, 28, 30}, 40, 9)}) {
    std::filesystem::remove_all(folder_);
  }

  absl::Status Write(const std::vector<Format>& formats) {
    return WriteWeightDatabase(folder_, model_, batches_, formats, {});
  }

  const std::string folder_;
  MemoryWeightSource model_;
  const std::vector<TokenBatch> batches_;
  const std::vector<Format> formats_ = {Format::IntegerGroup(3, 32), Format::NormalFloat(4),
                                        Format::Integer8Row(), Format::Bfloat16()};
};

TEST_F(WeightDatabaseTest, HoldsWhatGptqMakesOfEveryLinear) {
  ASSERT_TRUE(Write(formats_).ok());
  const auto database = WeightDatabase::Open(folder_, model_.config(), formats_);
  ASSERT_TRUE(database.ok()) << database.status();
  int64_t differ = 0;
  WalkInputMoments(
      model_, batches_,
      [&](int64_t block, const BlockWeights& weights, const InputMoments& moments) {
        for (LinearKind kind : kLinearKinds) {
          const auto expected =
              QuantizeGptq(weights.weight[kind], moments[kind], {formats_[0], formats_[1]});
          for (size_t f = 0; f < 2; ++f) {
            const auto found = (*database)->Find(block, kind, formats_[f]);
            ASSERT_TRUE(found.has_value());
            EXPECT_EQ(found->format, formats_[f]);
            for (const auto& [name, tensor] : expected[f].tensors) {
              EXPECT_TRUE(at::equal(found->tensors.at(name), tensor)) << name;
            }
            differ += at::equal(found->tensors.at("codes"),
                                Quantize(weights.weight[kind], formats_[f]).tensors.at("codes"))
                          ? 0
                          : 1;
          }
          // These are rounded to nearest.
          EXPECT_FALSE((*database)->Find(block, kind, formats_[2]).has_value());
          EXPECT_FALSE((*database)->Find(block, kind, formats_[3]).has_value());
        }
      });
  EXPECT_GT(differ, 30);  // Of 42: GPTQ is not round-to-nearest.
}

TEST_F(WeightDatabaseTest, AQuantizedModelTakesWhatIsThereAndRoundsTheRest) {
  ASSERT_TRUE(Write(formats_).ok());
  const auto database = WeightDatabase::Open(folder_, model_.config(), formats_);
  ASSERT_TRUE(database.ok()) << database.status();
  FormatAssignment assignment = UniformAssignment(model_.config(), formats_[0]);
  assignment["model.layers.1.mlp.up_proj"] = Format::Integer8Row();
  const auto source =
      QuantizedSource::Create(model_, assignment, QuantizedSource::Keep::kPacked, database->get());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->InStore(1, LinearKind::kGate));
  EXPECT_FALSE((*source)->InStore(1, LinearKind::kUp));
  const BlockWeights block = (*source)->Block(1);
  EXPECT_TRUE(at::equal(
      block.weight[LinearKind::kGate],
      Dequantize(*(*database)->Find(1, LinearKind::kGate, formats_[0]), at::kFloat, at::kCPU)));
  EXPECT_TRUE(at::equal(block.weight[LinearKind::kUp],
                        Dequantize(Quantize(model_.Block(1).weight[LinearKind::kUp], formats_[2]),
                                   at::kFloat, at::kCPU)));
}

TEST_F(WeightDatabaseTest, GoesOnBehindTheBlocksThatAreThere) {
  const auto read = [&](int64_t block) {
    std::ifstream file(folder_ + "/" + WeightDatabaseFile(block));
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  ASSERT_TRUE(Write(formats_).ok());
  const std::vector<std::string> whole = {read(0), read(1), read(2)};
  std::filesystem::remove(folder_ + "/" + WeightDatabaseFile(1));
  std::filesystem::remove(folder_ + "/" + WeightDatabaseFile(2));
  // The first is not looked at.
  std::ofstream(folder_ + "/" + WeightDatabaseFile(0)) << "kept";
  std::vector<int64_t> written;
  double last = 0;
  ASSERT_TRUE(WriteWeightDatabase(folder_, model_, batches_, formats_, {},
                                  [&](double done) { last = done; },
                                  {.written_blocks = 1,
                                   .on_block =
                                       [&](int64_t block) {
                                         EXPECT_EQ(read(block), whole[static_cast<size_t>(block)]);
                                         written.push_back(block);
                                       }})
                  .ok());
  EXPECT_THAT(written, ::testing::ElementsAre(1, 2));
  EXPECT_EQ(read(0), "kept");
  EXPECT_DOUBLE_EQ(last, 1);
  // All are there: nothing is left to do.
  EXPECT_TRUE(WriteWeightDatabase(folder_, model_, batches_, formats_, {}, {}, {3, {}}).ok());
  EXPECT_EQ(read(2), whole[2]);
}

TEST_F(WeightDatabaseTest, AFolderThatDoesNotFitIsRefusedByFileAndTensor) {
  ASSERT_TRUE(Write({formats_[0]}).ok());
  EXPECT_TRUE(WeightDatabase::Open(folder_, model_.config(), {formats_[0]}).ok());
  const auto missing = WeightDatabase::Open(folder_, model_.config(), formats_);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.status().message()),
              HasSubstr("block-00000.safetensors: must hold tensor "
                        "model.layers.0.self_attn.q_proj.nf4.absmax"));
  std::filesystem::remove(folder_ + "/block-00002.safetensors");
  EXPECT_EQ(WeightDatabase::Open(folder_, model_.config(), {formats_[0]}).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qpruner::engine
