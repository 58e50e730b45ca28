#include "worker/engine/tasks/exports.h"

#include <ATen/ATen.h>

#include "gtest/gtest.h"
#include "worker/engine/gradient/random_model.h"
#include "worker/engine/model/cast_source.h"

namespace qpruner::engine {
namespace {

// A GPU computes in the 16-bit type that a model is stored in, a CPU in float32. The values are the
// same, so the packed weights are; what is exported of them must be, too.
TEST(ExportsTest, WhatIsWrittenDoesNotDependOnWhatTheDeviceComputesIn) {
  MemoryWeightSource as_on_gpu = RandomModel({.hidden = 64, .dtype = at::kBFloat16});
  CastSource as_on_cpu(as_on_gpu, at::kFloat);
  const ModelConfig& config = as_on_gpu.config();
  LoraAdapter adapter = ZeroAdapter(config, {.rank = 2}, at::kCPU);
  for (auto& block : adapter.b) {
    for (const LinearKind kind : kLinearKinds) {
      if (block[kind].defined()) block[kind] = at::full_like(block[kind], 0.3);
    }
  }
  for (const bool beside : {false, true}) {
    v1::Export options;
    options.set_dtype(v1::Export::FLOAT32);
    if (beside) options.set_adapter(v1::Export::BESIDE);
    const FormatAssignment assignment = UniformAssignment(config, Format::NormalFloat(4));
    const auto gpu_base = QuantizedSource::Create(as_on_gpu, assignment).value();
    const auto cpu_base = QuantizedSource::Create(as_on_cpu, assignment).value();
    ExportedWeights gpu(options, *gpu_base, &adapter), cpu(options, *cpu_base, &adapter);
    EXPECT_EQ(gpu.measured().dtype(), at::kBFloat16);
    EXPECT_EQ(cpu.measured().dtype(), at::kFloat);
    for (int64_t block = 0; block < config.num_blocks(); ++block) {
      const BlockWeights found = gpu.in_model_folder().Block(block);
      const BlockWeights expected = cpu.in_model_folder().Block(block);
      for (const LinearKind kind : kLinearKinds) {
        EXPECT_TRUE(at::equal(found.weight[kind], expected.weight[kind]))
            << LinearName(block, kind) << (beside ? " beside" : " merged");
        if (!expected.bias[kind].defined()) continue;
        EXPECT_TRUE(at::equal(found.bias[kind], expected.bias[kind]));
      }
      EXPECT_TRUE(at::equal(found.mlp_norm, expected.mlp_norm));
    }
    EXPECT_TRUE(at::equal(gpu.in_model_folder().FinalNorm(), cpu.in_model_folder().FinalNorm()));
    EXPECT_TRUE(at::equal(gpu.in_model_folder().Embedding().to(at::kFloat),
                          cpu.in_model_folder().Embedding().to(at::kFloat)));
  }
}

}  // namespace
}  // namespace qpruner::engine
