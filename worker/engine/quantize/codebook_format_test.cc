// Against plain references, on sizes that give every thread and every vector lane work.
#include "worker/engine/quantize/codebook_format.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/engine/quantize/codebooks.h"

namespace qpruner::engine {
namespace {

at::Tensor Normal(int64_t rows, int64_t cols, uint64_t seed = 7) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed)) * 0.02;
}

// The definition: the nearest value in exact (double) arithmetic, the lower one of two.
int NearestNf4(double x) {
  int best = 0;
  for (int i = 1; i < 16; ++i) {
    if (std::abs(x - kNf4Values[i]) < std::abs(x - kNf4Values[best])) best = i;
  }
  return best;
}

TEST(CodebookFormat, Nf4CodesAreNearestInEveryBlock) {
  const at::Tensor weight = Normal(301, 517);  // 155617 weights: 2431 full blocks and 33.
  const PackedWeight packed = Quantize(weight, Format::NormalFloat(4));
  const float* w = weight.const_data_ptr<float>();
  const uint8_t* codes = packed.tensors.at("codes").const_data_ptr<uint8_t>();
  const float* absmax = packed.tensors.at("absmax").const_data_ptr<float>();
  int64_t on_a_bound = 0;
  for (int64_t i = 0; i < weight.numel(); ++i) {
    if (i % kCodebookBlock == 0) {
      float expected = 0;
      for (int64_t j = i; j < std::min(i + kCodebookBlock, weight.numel()); ++j) {
        expected = std::max(expected, std::abs(w[j]));
      }
      ASSERT_EQ(absmax[i / kCodebookBlock], expected) << "block of " << i;
    }
    const double x = double{w[i]} / absmax[i / kCodebookBlock];
    const int code = codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xF;
    if (code == NearestNf4(x)) continue;
    // float32 scaling and midpoints err by some 1e-7; farther than that, there is one nearest.
    ++on_a_bound;
    const double excess = std::abs(x - kNf4Values[code]) - std::abs(x - kNf4Values[NearestNf4(x)]);
    ASSERT_LT(excess, 5e-7) << "weight " << i;
  }
  EXPECT_LT(on_a_bound, 5);
}

// PEFT's definition, weight by weight: the first of the smallest float32 distances.
uint8_t FirstNearest(float x, const float* table, int size) {
  int best = 0;
  for (int i = 1; i < size; ++i) {
    if (std::fabs(x - table[i]) < std::fabs(x - table[best])) best = i;
  }
  return static_cast<uint8_t>(best);
}

TEST(CodebookFormat, NormalFloatCodesAreTheFirstNearest) {
  at::Tensor weight = Normal(129, 203);  // 26187 weights: 409 full blocks and 11.
  weight[5].fill_(0);
  const float* w = weight.const_data_ptr<float>();
  for (const Codebook codebook : {Codebook::kNf2, Codebook::kNf3, Codebook::kNf8}) {
    const int size = 1 << CodebookBits(codebook);
    std::vector<uint8_t> codes(static_cast<size_t>(weight.numel()));
    std::vector<float> absmax(static_cast<size_t>(weight.numel() / kCodebookBlock + 1));
    EncodeCodebook(codebook, w, weight.numel(), codes.data(), absmax.data());
    for (int64_t i = 0; i < weight.numel(); ++i) {
      const float scale = absmax[static_cast<size_t>(i / kCodebookBlock)];
      const float x = scale > 0 ? w[i] / scale : 0;
      ASSERT_EQ(codes[static_cast<size_t>(i)], FirstNearest(x, CodebookValues(codebook), size))
          << "weight " << i << " of a table of " << size;
    }
  }
}

TEST(CodebookFormat, DoubleQuantizationChangesScalesOnly) {
  const at::Tensor weight = Normal(301, 517);
  for (const bool fp4 : {false, true}) {
    const PackedWeight plain = Quantize(weight, fp4 ? Format::Float4() : Format::NormalFloat(4));
    const PackedWeight nested =
        Quantize(weight, fp4 ? Format::Float4(true) : Format::NormalFloat(4, true));
    EXPECT_TRUE(at::equal(nested.tensors.at("codes"), plain.tensors.at("codes")));
    const at::Tensor absmax = plain.tensors.at("absmax");
    const at::Tensor back = CodebookAbsmax(nested);
    // The map's steps are at most 0.0141 of the block's largest deviation from the mean.
    const at::Tensor deviation = (absmax - nested.tensors.at("offset")).abs().max();
    EXPECT_LE(((back - absmax).abs() / deviation).max().item<float>(), 0.0141 / 2 + 1e-4);
    EXPECT_NEAR(nested.tensors.at("offset").item<float>(), absmax.mean().item<float>(), 1e-8);
  }
}

}  // namespace
}  // namespace qpruner::engine
