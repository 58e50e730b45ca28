// The fast way of a block in bfloat16 against the plain operators in float32, and its kernels one
// by one.
#include "worker/engine/model/packed_block.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "worker/engine/model/row_kernels.h"

namespace qpruner::engine {
namespace {

struct Case {
  const char* name;
  int64_t heads, kv_heads, head_dim, batch, length;
  bool norm, bias;
};

// Names of the failed cases are readable.
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

at::Tensor Error(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kFloat) - b.to(at::kFloat)).norm() / b.to(at::kFloat).norm();
}

class PackedBlockTest : public ::testing::TestWithParam<Case> {};

TEST_P(PackedBlockTest, DiffersFromFloat32NoMoreThanPlainBFloat16Does) {
  if (!CanPackBlocks(at::kCPU, at::kBFloat16)) GTEST_SKIP() << "No bfloat16 products here";
  at::manual_seed(11);
  const Case& c = GetParam();
  ModelConfig config;
  config.hidden_size = 96;
  config.head_dim = c.head_dim;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000;
  config.query_key_norm = c.norm;
  const BlockShape shape{
      .num_heads = c.heads, .num_kv_heads = c.kv_heads, .intermediate_size = 172};
  BlockWeights weights;
  const auto random = [](std::vector<int64_t> size, double scale) {
    return at::randn(size).mul(scale).to(at::kBFloat16);
  };
  for (const LinearKind kind : kLinearKinds) {
    const auto size = LinearShape(config, shape, kind);
    weights.weight[kind] = random(size, 1.5 / std::sqrt(static_cast<double>(size[1])));
    if (c.bias) weights.bias[kind] = random({size[0]}, 0.2);
  }
  weights.attention_norm = random({96}, 0.2) + 1;
  weights.mlp_norm = random({96}, 0.2) + 1;
  if (c.norm) {
    weights.query_norm = random({c.head_dim}, 0.2) + 1;
    weights.key_norm = random({c.head_dim}, 0.2) + 1;
  }
  BlockWeights wide = weights;
  for (const LinearKind kind : kLinearKinds) {
    wide.weight[kind] = wide.weight[kind].to(at::kFloat);
    if (c.bias) wide.bias[kind] = wide.bias[kind].to(at::kFloat);
  }
  for (at::Tensor* norm :
       {&wide.attention_norm, &wide.mlp_norm, &wide.query_norm, &wide.key_norm}) {
    if (norm->defined()) *norm = norm->to(at::kFloat);
  }
  const at::Tensor hidden = random({c.batch, c.length, 96}, 1);
  const RotaryTables exact = MakeRotaryTables(config, c.length, at::kCPU, at::kFloat);
  const RotaryTables rounded = MakeRotaryTables(config, c.length, at::kCPU, at::kBFloat16);
  const at::Tensor expected = BlockForward(config, shape, wide, exact, hidden.to(at::kFloat));
  const at::Tensor plain = BlockForward(config, shape, weights, rounded, hidden);
  const at::Tensor packed =
      PackedBlock(config, shape, weights, c.batch * c.length).Forward(exact, hidden);
  ASSERT_EQ(packed.sizes(), expected.sizes());
  const double of_plain = Error(plain, expected).item<double>();
  const double of_packed = Error(packed, expected).item<double>();
  std::printf("%s: plain %.2e, packed %.2e\n", c.name, of_plain, of_packed);
  // bfloat16 keeps 8 bits: about 3e-3 a rounding, several of them in a row. Attention scores are
  // rounded once here where LibTorch keeps them in float32.
  EXPECT_LE(of_packed, 1.5 * of_plain);
  EXPECT_LE(of_packed, 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PackedBlockTest,
                         ::testing::Values(Case{"grouped", 6, 2, 32, 2, 300, false, false},
                                           Case{"one_to_one", 4, 4, 16, 3, 128, false, false},
                                           Case{"narrow_heads", 8, 4, 8, 2, 65, false, false},
                                           Case{"qwen2", 6, 3, 16, 1, 40, false, true},
                                           Case{"qwen3", 4, 2, 64, 2, 150, true, false},
                                           Case{"one_token", 4, 2, 16, 1, 1, false, false}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(RowKernelsTest, CausalExpIsASoftmaxOverWhatIsSeen) {
  at::manual_seed(3);
  const int64_t first = 37, group = 3, positions = 20, keys = first + positions;
  const at::Tensor scores = (at::randn({2, positions * group, keys}) * 4).to(at::kBFloat16);
  const at::Tensor position = at::arange(positions * group).div(group, "floor") + first;
  const at::Tensor hidden = at::arange(keys).unsqueeze(0) > position.unsqueeze(1);
  const at::Tensor expected = at::softmax(scores.to(at::kFloat).masked_fill(hidden, -INFINITY), -1);
  const at::Tensor powers = scores.clone();
  const at::Tensor scale = CausalExp(powers, first, group);
  const at::Tensor actual = powers.to(at::kFloat) * scale.unsqueeze(-1);
  EXPECT_TRUE(
      at::equal(actual.masked_select(hidden), at::zeros_like(actual.masked_select(hidden))));
  // One rounding to bfloat16 (8 significant bits): at most 2^-8 of each value.
  EXPECT_LE(((actual - expected).abs() - expected / 255).max().item<double>(), 1e-7);
}

TEST(RowKernelsTest, NormEqualsThePlainOneUpToOneRounding) {
  at::manual_seed(4);
  for (const int64_t width : {576, 100, 7}) {
    const at::Tensor x = at::randn({5, width}).to(at::kBFloat16);
    const at::Tensor weight = at::randn({width}).to(at::kBFloat16);
    const at::Tensor expected = RmsNorm(x.to(at::kFloat), weight.to(at::kFloat), 1e-6);
    const at::Tensor actual = RmsNormRows(x, weight, 1e-6).to(at::kFloat);
    EXPECT_LE(((actual - expected).abs() - expected.abs() / 255).max().item<double>(), 1e-7);
  }
}

}  // namespace
}  // namespace qpruner::engine
