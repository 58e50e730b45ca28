// The exports that serving engines read, checked against their documented layouts here; their own
// libraries read the same folders in tests/compat:
//   QPRUNER_EXPORT_DIR=/tmp/export build/release/tests/engine_export_test
//   tests/compat/run serving_check.py /tmp/export/serving
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/export/bitsandbytes_model.h"
#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/testing_model.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/quantize/codebook_kernels.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr char kModel[] = "data/models/stories260k";

// The shipped model with the first 128 of its 172 MLP channels: rows of whole groups.
MemoryWeightSource PrunedStories() {
  const auto whole = OpenModel(kModel);
  ModelConfig config = whole->config();
  std::vector<BlockWeights> blocks;
  for (BlockShape& shape : config.blocks) {
    BlockWeights& block = blocks.emplace_back(whole->Block(static_cast<int64_t>(blocks.size())));
    shape.intermediate_size = 128;
    for (LinearKind kind : {LinearKind::kGate, LinearKind::kUp}) {
      block.weight[kind] = block.weight[kind].narrow(0, 0, 128).contiguous();
    }
    block.weight[LinearKind::kDown] =
        block.weight[LinearKind::kDown].narrow(1, 0, 128).contiguous();
  }
  return MemoryWeightSource(config, blocks, whole->Embedding(), whole->FinalNorm());
}

class ServingExportTest : public ::testing::Test {
 protected:
  ServingExportTest() : model_(PrunedStories()), ids_(WriteTexts(*OpenModel(kModel))) {
    at::set_num_threads(1);
  }

  std::unique_ptr<QuantizedSource> Quantized(const FormatAssignment& assignment) {
    auto source = QuantizedSource::Create(model_, assignment);
    if (!source.ok()) throw std::runtime_error(std::string(source.status().message()));
    return *std::move(source);
  }
  // serving/NAME of the export folder, and the texts with the perplexity that `source` has on them.
  std::string Folder(const std::string& name, WeightSource& source) {
    const std::string folder = absl::StrCat(export_folder_.path(), "/serving/", name);
    EXPECT_TRUE(CreateFolders(folder).ok());
    EXPECT_TRUE(WriteDocuments(folder + "/documents.json", ids_, Perplexity(source, ids_)).ok());
    return folder;
  }
  void Read(const std::string& folder) {
    auto reader = SafetensorsReader::Open(folder + "/model.safetensors");
    ASSERT_TRUE(reader.ok()) << reader.status();
    file_ = *std::move(reader);
  }
  at::Tensor Get(const std::string& name) const {
    return TensorFromView(file_->tensors().at(name), file_);
  }
  bool Has(const std::string& name) const { return file_->tensors().count(name) > 0; }

  ExportFolder export_folder_;
  MemoryWeightSource model_;
  at::Tensor ids_;
  std::shared_ptr<SafetensorsReader> file_;
};

// compressed-tensors' unpack_from_int32, bit by bit: [rows, words] -> [rows, count] signed.
at::Tensor UnpackWords(const at::Tensor& words, int bits, int64_t count) {
  at::Tensor codes = at::zeros({words.size(0), count}, at::kInt);
  for (int64_t row = 0; row < words.size(0); ++row) {
    const at::Tensor contiguous = words[row].contiguous();
    const int32_t* word = contiguous.const_data_ptr<int32_t>();
    for (int64_t i = 0; i < count * bits; ++i) {
      const int bit = static_cast<int>(static_cast<uint32_t>(word[i / 32]) >> (i % 32) & 1u);
      codes[row][i / bits] += bit << (i % bits);
    }
  }
  return codes - (1 << (bits - 1));
}

TEST_F(ServingExportTest, CompressedTensorsHoldsAWidthPerLayer) {
  for (const bool uniform : {true, false}) {
    const Format four = Format::IntegerGroup(4, 32, /*symmetric=*/true);
    const Format eight = Format::IntegerGroup(8, 32, /*symmetric=*/true);
    FormatAssignment mixed = UniformAssignment(model_.config(), four);
    for (const auto& [linear, format] : UniformAssignment(model_.config(), four)) {
      if (uniform) break;
      if (linear.find("layers.3.") != std::string::npos) mixed[linear] = eight;
      if (linear.find("layers.4.mlp") != std::string::npos) mixed[linear] = Format::Integer8Row();
      if (linear.find("layers.0.") != std::string::npos) mixed[linear] = Format::Bfloat16();
    }
    const auto source = Quantized(mixed);
    const std::string folder =
        Folder(uniform ? "compressed-tensors-uniform" : "compressed-tensors-mixed", *source);
    ASSERT_TRUE(CheckCompressedTensors(model_.config(),
                                       {four, eight, Format::Integer8Row(), Format::Bfloat16()})
                    .ok());
    const auto written = WriteCompressedTensors(folder, *source, kModel);
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_THAT(*written,
                ::testing::IsSupersetOf({"config.json", "model.safetensors", "tokenizer.json"}));
    Read(folder);
    for (int64_t block = 0; block < 5; ++block) {
      for (LinearKind kind : {LinearKind::kKey, LinearKind::kDown}) {
        const std::string name = LinearName(block, kind);
        const Format& format = mixed.at(name);
        const at::Tensor expected = source->Block(block).weight[kind];
        if (format.kind == FormatKind::kBfloat16) {
          EXPECT_TRUE(at::equal(Get(name + ".weight").to(at::kFloat), expected)) << name;
          continue;
        }
        EXPECT_FALSE(Has(name + ".weight")) << name;
        const int64_t rows = expected.size(0), cols = expected.size(1);
        EXPECT_TRUE(at::equal(Get(name + ".weight_shape"), at::tensor({rows, cols}, at::kLong)));
        at::Tensor scale = Get(name + ".weight_scale").to(at::kFloat);
        const at::Tensor codes = UnpackWords(Get(name + ".weight_packed"), format.bits, cols);
        scale = scale.repeat_interleave(cols / scale.size(1), 1);
        // int8-row: SCB / 127 is rounded once more.
        EXPECT_TRUE(at::allclose(codes * scale, expected, 1e-6, 0)) << name;
      }
    }
    const nlohmann::json config = ReadJson(folder + "/config.json")["quantization_config"];
    EXPECT_EQ(config["format"], "pack-quantized");
    ASSERT_EQ(config["config_groups"].size(), uniform ? 1u : 3u);
    std::map<std::string, nlohmann::json> groups;
    for (const auto& group : config["config_groups"]) {
      groups[absl::StrCat(group["weights"]["num_bits"].get<int>(),
                          group["weights"]["strategy"].get<std::string>())] = group;
    }
    EXPECT_EQ(groups["4group"]["weights"]["symmetric"], true);
    EXPECT_EQ(groups["4group"]["weights"]["group_size"], 32);
    EXPECT_EQ(groups["4group"]["targets"].size(), 7u);
    if (uniform) continue;
    EXPECT_EQ(groups["4group"]["targets"][0], "re:^model\\.layers\\.(1|2|4)\\.self_attn\\.q_proj$");
    EXPECT_THAT(groups["8channel"]["targets"],
                UnorderedElementsAre("re:^model\\.layers\\.(4)\\.mlp\\.gate_proj$",
                                     "re:^model\\.layers\\.(4)\\.mlp\\.up_proj$",
                                     "re:^model\\.layers\\.(4)\\.mlp\\.down_proj$"));
  }
}

TEST_F(ServingExportTest, BitsandbytesHoldsOurBytesUnderItsNames) {
  for (const Format& format :
       {Format::NormalFloat(4), Format::NormalFloat(4, true), Format::Float4(true)}) {
    FormatAssignment assignment = UniformAssignment(model_.config(), format);
    assignment["model.layers.2.mlp.up_proj"] = Format::Bfloat16();
    const auto source = Quantized(assignment);
    const std::string folder = Folder("bitsandbytes-" + FormatName(format), *source);
    ASSERT_TRUE(CheckBitsandbytes(model_.config(), {format, Format::Bfloat16()}).ok());
    ASSERT_TRUE(WriteBitsandbytes(folder, *source, kModel).ok());
    Read(folder);
    const std::string name = "model.layers.1.mlp.down_proj.weight";
    const PackedWeight packed = source->Packed(1, LinearKind::kDown);
    EXPECT_TRUE(at::equal(Get(name), packed.tensors.at("codes").unsqueeze(1)));
    EXPECT_TRUE(at::equal(Get(name + ".absmax"), packed.tensors.at("absmax")));
    const bool fp4 = format.kind == FormatKind::kFloat4;
    EXPECT_EQ(Get(name + ".quant_map")[1].item<float>(),
              CodebookValues(fp4 ? Codebook::kFp4 : Codebook::kNf4)[1]);
    const at::Tensor state =
        Get(absl::StrCat(name, ".quant_state.bitsandbytes__", fp4 ? "fp4" : "nf4"));
    const auto json = nlohmann::json::parse(BytesOf(state));
    EXPECT_EQ(json["shape"], nlohmann::json({64, 128}));
    EXPECT_EQ(json["blocksize"], 64);
    EXPECT_EQ(Has(name + ".nested_absmax"), format.double_quantized);
    EXPECT_EQ(json.contains("nested_offset"), format.double_quantized);
    EXPECT_FALSE(Has(name + ".offset"));
    EXPECT_TRUE(at::equal(Get("model.layers.2.mlp.up_proj.weight").to(at::kFloat),
                          source->Block(2).weight[LinearKind::kUp]));
    const nlohmann::json config = ReadJson(folder + "/config.json")["quantization_config"];
    EXPECT_EQ(config["load_in_4bit"], true);
    EXPECT_EQ(config["bnb_4bit_use_double_quant"], format.double_quantized);
    EXPECT_EQ(config["llm_int8_skip_modules"],
              nlohmann::json({"lm_head", "model.layers.2.mlp.up_proj"}));
  }
  const auto source = Quantized(UniformAssignment(model_.config(), Format::Integer8Row()));
  const std::string folder = Folder("bitsandbytes-int8", *source);
  ASSERT_TRUE(WriteBitsandbytes(folder, *source, kModel).ok());
  Read(folder);
  const PackedWeight packed = source->Packed(4, LinearKind::kQuery);
  EXPECT_TRUE(at::equal(Get("model.layers.4.self_attn.q_proj.weight"), packed.tensors.at("codes")));
  EXPECT_TRUE(at::equal(Get("model.layers.4.self_attn.q_proj.SCB"), packed.tensors.at("SCB")));
  EXPECT_EQ(Get("model.layers.4.self_attn.q_proj.weight_format").item<int>(), 0);
  EXPECT_EQ(ReadJson(folder + "/config.json")["quantization_config"]["load_in_8bit"], true);
}

TEST_F(ServingExportTest, WhatAFormatCannotHoldIsRefusedByName) {
  const auto whole = OpenModel(kModel);
  const auto compressed = [&](const ModelConfig& config, const Format& format) {
    return std::string(CheckCompressedTensors(config, {Format::Bfloat16(), format}).message());
  };
  EXPECT_THAT(compressed(model_.config(), Format::NormalFloat(4)), HasSubstr("not nf4"));
  EXPECT_THAT(compressed(model_.config(), Format::IntegerGroup(3, 32, true)),
              HasSubstr("not int3-sym-group32"));
  EXPECT_THAT(compressed(model_.config(), Format::IntegerGroup(4, 32)),
              HasSubstr("not int4-group32"));
  EXPECT_THAT(compressed(whole->config(), Format::IntegerGroup(4, 32, true)),
              HasSubstr("model.layers.0.mlp.down_proj have 172 weights"));
  const auto bitsandbytes = [&](const std::vector<Format>& formats) {
    return std::string(CheckBitsandbytes(model_.config(), formats).message());
  };
  EXPECT_THAT(bitsandbytes({Format::NormalFloat(4), Format::Integer8Row()}),
              HasSubstr("not both nf4 and int8-row"));
  EXPECT_THAT(bitsandbytes({Format::NormalFloat(8)}), HasSubstr("not nf8"));
  ModelConfig uneven = model_.config();
  uneven.blocks[2].intermediate_size = 96;
  EXPECT_THAT(compressed(uneven, Format::Bfloat16()), HasSubstr("differ in shape"));
  EXPECT_THAT(std::string(CheckBitsandbytes(uneven, {Format::Bfloat16()}).message()),
              HasSubstr("differ in shape"));
}

}  // namespace
}  // namespace qpruner::engine
