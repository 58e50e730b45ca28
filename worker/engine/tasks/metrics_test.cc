#include "worker/engine/tasks/metrics.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "worker/engine/export/gguf_model.h"
#include "worker/engine/formats/tokenizer_files.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

constexpr char kModel[] = "data/models/stories260k";

// One definition, whatever the model is stored as, and whatever the embedding takes.
TEST(MetricsTest, AverageBitsAreOverTheLinears) {
  const auto original = Checkpoint::Open(kModel);
  ASSERT_TRUE(original.ok()) << original.status();
  EXPECT_DOUBLE_EQ(CheckpointMetrics(**original, {}).average_bits(), 32);

  const auto source = MakeCheckpointSource(*original, at::kCPU, at::kFloat);
  const ModelConfig& config = source->config();
  const Format format = Format::IntegerGroup(4, 64);
  const ModelBytes packed = CountBytes(config, UniformAssignment(config, format));
  EXPECT_EQ(PackedMetrics(packed, {}).average_bits(), packed.average_bits());

  GgufModelOptions options;
  options.embedding = GgmlType::kF32;
  options.tokenizer = ReadTokenizerFiles(kModel).value();
  for (const auto& [linear, unused] : UniformAssignment(config, format)) {
    options.linears[linear] = GgmlType::kQ4_0;
  }
  const std::string path = ::testing::TempDir() + "/metrics_test.gguf";
  const auto summary = WriteGgufModel(path, *source, options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto written = Checkpoint::Open(path);
  ASSERT_TRUE(written.ok()) << written.status();
  // Of 64 weights a row, 4.5 bits in blocks of 32; of 172, which are no whole blocks, F16.
  constexpr double kDown = 64 * 172, kOthers = 2 * 172 * 64 + 2 * 64 * 64 + 2 * 32 * 64;
  const v1::ModelMetrics metrics = CheckpointMetrics(**written, {});
  EXPECT_DOUBLE_EQ(metrics.average_bits(), (16 * kDown + 4.5 * kOthers) / (kDown + kOthers));
  EXPECT_EQ(metrics.weight_bytes(), summary->weight_bytes);
  EXPECT_EQ(metrics.parameter_count(), packed.parameter_count);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace qpruner::engine
