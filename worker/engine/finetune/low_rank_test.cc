#include "worker/engine/finetune/low_rank.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <string>

#include "worker/engine/quantize/format.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kRank = 8;

at::Tensor Noise(int64_t rows, int64_t cols, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::empty({rows, cols}, at::kFloat).normal_(0, 1, generator);
}

double Left(const at::Tensor& matrix, const LeadingTriplets& svd) {
  return at::linalg_norm(matrix.to(at::kDouble) - at::matmul(svd.left, svd.right)).item<double>();
}

double Energy(const LeadingTriplets& svd) {
  return at::matmul(svd.left, svd.right).square().sum().item<double>();
}

// What a real job decomposes; the others are its extremes: no structure at all, and much of it.
at::Tensor Nf4Error() {
  const at::Tensor weight = Noise(640, 320, 1) * 0.02;
  return weight - Dequantize(Quantize(weight, Format::NormalFloat(4)), at::kFloat, at::kCPU);
}
at::Tensor Decaying() {
  const at::Tensor scale = at::exp(-0.1 * at::arange(320, at::kFloat));
  return at::matmul(Noise(640, 320, 2) * scale, Noise(320, 320, 3));
}

TEST(LowRankTest, KrylovLeavesTheErrorOfTheExactDecomposition) {
  for (const auto& [name, matrix] :
       {std::pair<std::string, at::Tensor>("white noise", Noise(320, 640, 4)),
        {"NF4's error", Nf4Error()},
        {"decaying", Decaying()}}) {
    SCOPED_TRACE(name);
    const LeadingTriplets exact = LeadingSvdByGram(matrix, kRank);
    const LeadingTriplets found = LeadingSvdByKrylov(matrix, kRank, 0);
    EXPECT_GE(Left(matrix, found), Left(matrix, exact) * (1 - 1e-6));
    EXPECT_LE(Left(matrix, found), Left(matrix, exact) * (1 + 1e-4));
    EXPECT_GE(Energy(found), 0.995 * Energy(exact));
    const LeadingTriplets again = LeadingSvdByKrylov(matrix, kRank, 0);
    EXPECT_TRUE(at::equal(again.left, found.left) && at::equal(again.right, found.right));
  }
}

TEST(LowRankTest, GramIsTheSingularValueDecomposition) {
  const at::Tensor matrix = Noise(60, 90, 5);
  const auto singular = at::linalg_svdvals(matrix.to(at::kDouble));
  const double expected = singular.slice(0, kRank).square().sum().sqrt().item<double>();
  EXPECT_NEAR(Left(matrix, LeadingSvdByGram(matrix, kRank)), expected, 1e-9);
  EXPECT_NEAR(Left(matrix.t(), LeadingSvdByGram(matrix.t(), kRank)), expected, 1e-9);
}

TEST(LowRankTest, MatricesWithFewDirectionsGiveFewTriplets) {
  const at::Tensor two = at::matmul(Noise(640, 2, 6), Noise(2, 320, 7));
  for (const LeadingTriplets& svd :
       {LeadingSvdByGram(two, kRank), LeadingSvdByKrylov(two, kRank, 0)}) {
    EXPECT_EQ(svd.left.size(1), 2);
    EXPECT_LT(Left(two, svd), 1e-4 * at::linalg_norm(two).item<double>());
  }
  const at::Tensor zero = at::zeros({640, 320});
  EXPECT_EQ(LeadingSvdByGram(zero, kRank).left.size(1), 0);
  EXPECT_EQ(LeadingSvdByKrylov(zero, kRank, 0).left.size(1), 0);
}

}  // namespace
}  // namespace qpruner::engine
