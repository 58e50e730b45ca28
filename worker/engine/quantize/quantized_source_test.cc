#include "worker/engine/quantize/quantized_source.h"

#include <ATen/ATen.h>

#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/model/wrapped_source.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

const Format kNf4 = Format::NormalFloat(4);
const Format kInt4 = Format::IntegerGroup(4, 64);
const Format kInt8 = Format::Integer8Row();
const Format kBfloat16 = Format::Bfloat16();

class QuantizedSourceTest : public ::testing::Test {
 protected:
  QuantizedSourceTest() {
    auto checkpoint = Checkpoint::Open("data/models/stories260k");
    if (!checkpoint.ok()) throw std::runtime_error(std::string(checkpoint.status().message()));
    base_ = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
    // Every format somewhere.
    mixed_ = UniformAssignment(base_->config(), kNf4);
    mixed_["model.layers.0.self_attn.q_proj"] = kInt8;
    mixed_["model.layers.1.mlp.down_proj"] = kInt4;
    mixed_["model.layers.4.mlp.up_proj"] = kBfloat16;
  }

  std::unique_ptr<WeightSource> base_;
  FormatAssignment mixed_;
};

TEST_F(QuantizedSourceTest, BytesOfTheShippedModel) {
  // Embedding 512 x 64 (tied), 11 norms of 64; a block's linears: 45312 weights in 600 rows.
  constexpr int64_t kFixed = 2 * (512 * 64 + 11 * 64);
  EXPECT_EQ(FixedBytes(base_->config()), kFixed);
  const ModelBytes nf4 = CountBytes(base_->config(), UniformAssignment(base_->config(), kNf4));
  EXPECT_EQ(nf4.linear_parameter_count, 5 * 45312);
  EXPECT_EQ(nf4.parameter_count, 5 * 45312 + kFixed / 2);
  EXPECT_EQ(nf4.linear_bytes, 5 * 45312 * 9 / 16);
  EXPECT_EQ(nf4.total(), kFixed + 5 * 45312 * 9 / 16);
  EXPECT_DOUBLE_EQ(nf4.average_bits(), 4.5);
  const ModelBytes int8 = CountBytes(base_->config(), UniformAssignment(base_->config(), kInt8));
  EXPECT_EQ(int8.linear_bytes, 5 * (45312 + 600 * 4));
  const ModelBytes bf16 =
      CountBytes(base_->config(), UniformAssignment(base_->config(), kBfloat16));
  EXPECT_DOUBLE_EQ(bf16.average_bits(), 16);
  EXPECT_EQ(bf16.total(), 2 * bf16.parameter_count);
}

TEST_F(QuantizedSourceTest, BytesOfSmolLm) {
  // SmolLM2-135M: the sizes of its projections measured with bitsandbytes.
  const auto config = ParseModelConfig(R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
      "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
      "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true})");
  ASSERT_TRUE(config.ok()) << config.status();
  const auto linear_bytes = [&](const Format& format) {
    return CountBytes(*config, UniformAssignment(*config, format)).linear_bytes;
  };
  EXPECT_EQ(linear_bytes(kNf4), 59'719'680);
  EXPECT_EQ(linear_bytes(kInt8), 106'790'400);
  EXPECT_EQ(linear_bytes(kBfloat16), 212'336'640);
}

TEST_F(QuantizedSourceTest, TheBytesCountedAreTheBytesPacked) {
  auto source = QuantizedSource::Create(*base_, mixed_);
  ASSERT_TRUE(source.ok()) << source.status();
  int64_t bytes = 0;
  for (int64_t block = 0; block < base_->config().num_blocks(); ++block) {
    for (LinearKind kind : kLinearKinds) bytes += (*source)->Packed(block, kind).bytes();
  }
  EXPECT_EQ(bytes, CountBytes(base_->config(), mixed_).linear_bytes);
}

TEST_F(QuantizedSourceTest, GivesEachLinearInItsFormatAndTheRestInBfloat16) {
  for (auto keep : {QuantizedSource::Keep::kNothing, QuantizedSource::Keep::kPacked}) {
    auto source = QuantizedSource::Create(*base_, mixed_, keep);
    ASSERT_TRUE(source.ok()) << source.status();
    for (int pass = 0; pass < 2; ++pass) {  // The second comes from what is kept.
      for (int64_t block = 0; block < base_->config().num_blocks(); ++block) {
        const BlockWeights plain = base_->Block(block);
        const BlockWeights stored = (*source)->Block(block);
        for (LinearKind kind : kLinearKinds) {
          const at::Tensor expected =
              Dequantize(Quantize(plain.weight[kind], mixed_.at(LinearName(block, kind))),
                         at::kFloat, at::kCPU);
          EXPECT_TRUE(at::equal(stored.weight[kind], expected)) << LinearName(block, kind);
          EXPECT_FALSE(stored.bias[kind].defined());
        }
        EXPECT_TRUE(at::equal(stored.mlp_norm, plain.mlp_norm.to(at::kBFloat16).to(at::kFloat)));
        EXPECT_FALSE(at::equal(stored.mlp_norm, plain.mlp_norm));
      }
    }
    EXPECT_TRUE(
        at::equal((*source)->Embedding(), base_->Embedding().to(at::kBFloat16).to(at::kFloat)));
    EXPECT_TRUE(at::equal((*source)->Head(), (*source)->Embedding()));
    EXPECT_TRUE(
        at::equal((*source)->FinalNorm(), base_->FinalNorm().to(at::kBFloat16).to(at::kFloat)));
  }
}

// The base, and how many linears' weights were asked of it.
class CountingSource final : public WrappedSource {
 public:
  using WrappedSource::WrappedSource;
  BlockWeights Block(int64_t block) override { return BlockWith(AllLinears(), block); }
  BlockWeights BlockWith(const LinearSet& wanted, int64_t block) override {
    for (LinearKind kind : kLinearKinds) linears += wanted[kind] ? 1 : 0;
    return base().BlockWith(wanted, block);
  }

  int linears = 0;
};

// Every linear as `source` packs it, but for the bfloat16 ones.
class StoreOf final : public PackedWeightStore {
 public:
  explicit StoreOf(QuantizedSource& source) : source_(source) {}
  std::optional<PackedWeight> Find(int64_t block, LinearKind kind,
                                   const Format& format) const override {
    if (format.kind == FormatKind::kBfloat16) return std::nullopt;
    return source_.Packed(block, kind);
  }

 private:
  QuantizedSource& source_;
};

TEST_F(QuantizedSourceTest, ReadsOnlyTheLinearsThatItHasToQuantize) {
  constexpr int kAll = 5 * kLinearKindCount;
  CountingSource base(*base_);
  const auto walk = [&](WeightSource& source) {
    const int before = base.linears;
    for (int64_t block = 0; block < 5; ++block) {
      const BlockWeights weights = source.Block(block);
      EXPECT_TRUE(weights.weight[LinearKind::kDown].defined());
      EXPECT_TRUE(weights.mlp_norm.defined());
    }
    return base.linears - before;
  };
  auto kept = QuantizedSource::Create(base, mixed_, QuantizedSource::Keep::kPacked);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(walk(**kept), kAll);
  EXPECT_EQ(walk(**kept), 0) << "all of them are kept";
  (*kept)->Packed(2, LinearKind::kUp);
  EXPECT_EQ(base.linears, kAll);

  auto streamed = QuantizedSource::Create(base, mixed_, QuantizedSource::Keep::kNothing);
  ASSERT_TRUE(streamed.ok()) << streamed.status();
  EXPECT_EQ(walk(**streamed), kAll);
  EXPECT_EQ(walk(**streamed), kAll);
  base.linears = 0;
  (*streamed)->Packed(2, LinearKind::kUp);
  EXPECT_EQ(base.linears, 1);
  EXPECT_FALSE((*streamed)->BlockWith({}, 1).weight[LinearKind::kUp].defined());
  EXPECT_EQ(base.linears, 1) << "none is wanted";

  const StoreOf store(**kept);
  auto stored = QuantizedSource::Create(base, mixed_, QuantizedSource::Keep::kNothing, &store);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(walk(**stored), 1) << "the one in bfloat16";
}

TEST_F(QuantizedSourceTest, APackedWeightCanBeReplaced) {
  auto source = QuantizedSource::Create(*base_, mixed_, QuantizedSource::Keep::kNothing);
  ASSERT_TRUE(source.ok()) << source.status();
  const at::Tensor changed = base_->Block(2).weight[LinearKind::kKey] * 0.5;
  (*source)->SetPacked(2, LinearKind::kKey, Quantize(changed, kNf4));
  EXPECT_TRUE(at::equal((*source)->Block(2).weight[LinearKind::kKey],
                        Dequantize(Quantize(changed, kNf4), at::kFloat, at::kCPU)));
  EXPECT_THROW((*source)->SetPacked(2, LinearKind::kKey, Quantize(changed, kInt8)), c10::Error);
  EXPECT_THROW((*source)->SetPacked(2, LinearKind::kQuery, Quantize(changed, kNf4)), c10::Error);
}

TEST_F(QuantizedSourceTest, AssignmentsMustFitTheModel) {
  FormatAssignment missing = mixed_;
  missing.erase("model.layers.3.mlp.gate_proj");
  const auto without = QuantizedSource::Create(*base_, missing);
  EXPECT_EQ(without.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(without.status().message()), HasSubstr("model.layers.3.mlp.gate_proj"));
  FormatAssignment unknown = mixed_;
  unknown["model.layers.5.mlp.gate_proj"] = kNf4;
  EXPECT_THAT(std::string(QuantizedSource::Create(*base_, unknown).status().message()),
              HasSubstr("model.layers.5.mlp.gate_proj"));
}

TEST_F(QuantizedSourceTest, AWeightThatCannotBeQuantizedIsNamed) {
  MemoryWeightSource copy = LoadIntoMemory(*base_);
  // Memory sources alias what they were given.
  at::Tensor weight = copy.Block(3).weight[LinearKind::kDown].clone();
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < 5; ++block) blocks.push_back(copy.Block(block));
  weight[1][2] = std::numeric_limits<float>::infinity();
  blocks[3].weight[LinearKind::kDown] = weight;
  MemoryWeightSource broken(copy.config(), blocks, copy.Embedding(), copy.FinalNorm());
  auto source = QuantizedSource::Create(broken, mixed_);
  ASSERT_TRUE(source.ok());
  try {
    (*source)->Block(3);
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(), HasSubstr("Weight [1, 2] is inf"));
    EXPECT_THAT(error.what_without_backtrace(), HasSubstr("model.layers.3.mlp.down_proj"));
  }
}

}  // namespace
}  // namespace qpruner::engine
