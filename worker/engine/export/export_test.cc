// Everything written here is read back by our own readers; tests/compat/export_check.py reads the
// same folders with transformers and PEFT. To make them:
//   QPRUNER_EXPORT_DIR=/tmp/export build/release/tests/engine_export_test
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/engine/export/checkpoint_tensors.h"
#include "worker/engine/export/gguf_model.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/export/model_card.h"
#include "worker/engine/export/packed_model.h"
#include "worker/engine/export/peft_adapter.h"
#include "worker/engine/export/testing_model.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/model/memory_source.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] = "data/models/stories260k";

// Every format somewhere.
FormatAssignment MixedAssignment(const ModelConfig& config) {
  FormatAssignment mixed = UniformAssignment(config, Format::NormalFloat(4));
  mixed["model.layers.0.self_attn.q_proj"] = Format::Integer8Row();
  mixed["model.layers.1.mlp.down_proj"] = Format::IntegerGroup(4, 32);
  mixed["model.layers.4.mlp.up_proj"] = Format::Bfloat16();
  return mixed;
}

// A random adapter of rank 4, alpha 8, on every linear of `config`.
PeftAdapter RandomAdapter(const ModelConfig& config) {
  PeftAdapter adapter{.rank = 4, .alpha = 8, .base_model = "../quantized, dequantized"};
  auto generator = at::make_generator<at::CPUGeneratorImpl>(11);
  for (const BlockShape& block : config.blocks) {
    PerLinear<at::Tensor> a, b;
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> shape = LinearShape(config, block, kind);
      a[kind] = at::randn({adapter.rank, shape[1]}, generator) * 0.05;
      b[kind] = at::randn({shape[0], adapter.rank}, generator) * 0.05;
    }
    adapter.a.push_back(a);
    adapter.b.push_back(b);
  }
  return adapter;
}

// `source` with the adapter merged into its weights.
MemoryWeightSource Merge(WeightSource& source, const PeftAdapter& adapter) {
  std::vector<BlockWeights> blocks;
  for (size_t block = 0; block < adapter.a.size(); ++block) {
    BlockWeights weights = source.Block(static_cast<int64_t>(block));
    for (LinearKind kind : kLinearKinds) {
      weights.weight[kind] =
          weights.weight[kind] + adapter.alpha / static_cast<double>(adapter.rank) *
                                     at::mm(adapter.b[block][kind], adapter.a[block][kind]);
    }
    blocks.push_back(weights);
  }
  return MemoryWeightSource(source.config(), blocks, source.Embedding(), source.FinalNorm());
}

class ExportTest : public ::testing::Test {
 protected:
  ExportTest() {
    // The models are so small that a second thread costs more than it gives.
    at::set_num_threads(1);
    base_ = OpenModel(kModel);
    auto source = QuantizedSource::Create(*base_, MixedAssignment(base_->config()));
    if (!source.ok()) throw std::runtime_error(std::string(source.status().message()));
    quantized_ = *std::move(source);
  }

  const ExportFolder export_folder_;
  const std::string& folder_ = export_folder_.path();
  std::unique_ptr<WeightSource> base_;
  std::unique_ptr<QuantizedSource> quantized_;
};

TEST_F(ExportTest, HfModelIsReadBackAsWritten) {
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const std::string folder = folder_ + "/" + c10::toString(dtype);
    const auto written =
        WriteHfModel(folder, *quantized_, {.dtype = dtype, .tokenizer_from = kModel});
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_THAT(*written, ElementsAre("config.json", "model.safetensors", "tokenizer.json",
                                      "tokenizer_config.json"));
    for (const std::string& path : *written) {
      EXPECT_TRUE(std::filesystem::is_regular_file(folder + "/" + path)) << path;
    }
    EXPECT_EQ(ReadFile(folder + "/tokenizer.json", 1 << 20).value(),
              ReadFile(std::string(kModel) + "/tokenizer.json", 1 << 20).value());
    EXPECT_EQ(ReadJson(folder + "/config.json")["torch_dtype"],
              dtype == at::kFloat ? "float32" : "bfloat16");

    auto file = SafetensorsReader::Open(folder + "/model.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->metadata().at("format"), "pt");
    EXPECT_EQ((*file)->tensors().count("lm_head.weight"), 0);  // Tied.
    for (const auto& [name, view] : (*file)->tensors()) EXPECT_EQ(view.dtype, DTypeOf(dtype));

    const std::unique_ptr<WeightSource> read = OpenModel(folder);
    EXPECT_EQ(read->config().blocks, base_->config().blocks);
    EXPECT_TRUE(at::equal(read->Embedding(), quantized_->Embedding()));
    EXPECT_TRUE(at::equal(read->FinalNorm(), quantized_->FinalNorm()));
    for (int64_t block = 0; block < 5; ++block) {
      const BlockWeights expected = quantized_->Block(block);
      const BlockWeights actual = read->Block(block);
      for (LinearKind kind : kLinearKinds) {
        EXPECT_TRUE(at::equal(actual.weight[kind], expected.weight[kind].to(dtype).to(at::kFloat)));
      }
      EXPECT_TRUE(at::equal(actual.attention_norm, expected.attention_norm));
      EXPECT_TRUE(at::equal(actual.mlp_norm, expected.mlp_norm));
    }
  }
}

TEST_F(ExportTest, HfModelOfAnUntiedModelWhoseBlocksDiffer) {
  ModelConfig config = base_->config();
  config.tie_word_embeddings = false;
  config.blocks[1] = {.num_heads = 4, .num_kv_heads = 2, .intermediate_size = 33};
  std::vector<BlockWeights> blocks;
  for (int64_t block = 0; block < 5; ++block) {
    BlockWeights weights = base_->Block(block);
    for (LinearKind kind : kLinearKinds) {
      weights.weight[kind] =
          at::rand(LinearShape(config, config.blocks[static_cast<size_t>(block)], kind));
    }
    blocks.push_back(weights);
  }
  MemoryWeightSource source(config, blocks, base_->Embedding(), base_->FinalNorm(),
                            at::rand({512, 64}));
  const std::string folder = folder_ + "/untied";
  const auto written = WriteHfModel(folder, source, {.dtype = at::kFloat});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(*written, ElementsAre("config.json", "model.safetensors"));
  const std::unique_ptr<WeightSource> read = OpenModel(folder);
  EXPECT_EQ(read->config().blocks, config.blocks);
  EXPECT_TRUE(at::equal(read->Head(), source.Head()));
  EXPECT_TRUE(at::equal(read->Block(1).weight[LinearKind::kDown],
                        source.Block(1).weight[LinearKind::kDown]));
}

TEST_F(ExportTest, HfModelRefusesOtherDtypes) {
  EXPECT_EQ(WriteHfModel(folder_ + "/half", *base_, {.dtype = at::kHalf}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ExportTest, PackedModelIsReadBackBitForBit) {
  const std::string folder = folder_ + "/quantized";
  const auto written = WritePackedModel(folder, *quantized_);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(*written, ElementsAre("model.safetensors", "quantization.json"));

  const auto model = PackedModel::Open(folder);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->assignment(), quantized_->assignment());
  int64_t bytes = 0;
  for (int64_t block = 0; block < 5; ++block) {
    for (LinearKind kind : kLinearKinds) {
      const PackedWeight expected = quantized_->Packed(block, kind);
      const PackedWeight actual = (*model)->Linear(LinearName(block, kind));
      ASSERT_EQ(actual.tensors.size(), expected.tensors.size());
      for (const auto& [name, tensor] : expected.tensors) {
        EXPECT_EQ(actual.tensors.at(name).scalar_type(), tensor.scalar_type());
        EXPECT_TRUE(at::equal(actual.tensors.at(name), tensor)) << LinearName(block, kind) << name;
      }
      EXPECT_TRUE(at::equal(Dequantize(actual, at::kFloat, at::kCPU),
                            quantized_->Block(block).weight[kind]));
      bytes += actual.bytes();
    }
  }
  const std::map<std::string, at::Tensor> fixed = (*model)->FixedTensors();
  EXPECT_EQ(fixed.size(), 12);  // Embedding and 11 norms.
  EXPECT_TRUE(
      at::equal(fixed.at("model.embed_tokens.weight").to(at::kFloat), quantized_->Embedding()));
  EXPECT_TRUE(at::equal(fixed.at("model.layers.3.post_attention_layernorm.weight").to(at::kFloat),
                        quantized_->Block(3).mlp_norm));
  for (const auto& [name, tensor] : fixed) bytes += static_cast<int64_t>(tensor.nbytes());

  // The bytes that the search counts are the bytes in the file.
  const ModelBytes counted = CountBytes(base_->config(), quantized_->assignment());
  EXPECT_EQ(bytes, counted.total());
  const nlohmann::json description = ReadJson(folder + "/quantization.json");
  EXPECT_EQ(description["total_bytes"], counted.total());
  EXPECT_EQ(description["linear_bytes"], counted.linear_bytes);
  EXPECT_EQ(description["linears"]["model.layers.1.mlp.down_proj"]["format"], "int4-group32");
  EXPECT_EQ(description["linears"]["model.layers.1.mlp.down_proj"]["bytes"],
            64 * (86 + 6 * 2 + 3));  // 172 columns: 86 bytes of codes, 6 groups.
}

TEST_F(ExportTest, PackedModelRefusesWhatDoesNotFit) {
  const std::string folder = folder_ + "/broken";
  ASSERT_TRUE(WritePackedModel(folder, *quantized_).ok());
  const std::string path = folder + "/quantization.json";
  const nlohmann::json good = ReadJson(path);
  const auto open_with = [&](const nlohmann::json& description) {
    EXPECT_TRUE(WriteFileDurably(path, description.dump()).ok());
    return PackedModel::Open(folder).status();
  };
  const std::string linear = "model.layers.2.self_attn.k_proj";
  ASSERT_TRUE(open_with(good).ok());

  nlohmann::json bad = good;
  bad["version"] = 2;
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr("version 1"));
  bad = good;
  bad["linears"][linear]["format"] = "nf5";
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr("nf5"));
  bad = good;
  bad["linears"][linear]["format"] = "int8-row";
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr(linear + ".SCB"));
  bad = good;
  bad["linears"][linear]["shape"] = {64, 64};
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr(linear));
  bad = good;
  bad["linears"][linear]["shape"] = {1, uint64_t{1} << 62};
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr(linear));
  bad = good;
  bad["linears"][linear]["format"] = "nf8";  // 2^60 weights of 8 bits are 2^63 bits.
  bad["linears"][linear]["shape"] = {uint64_t{1} << 30, uint64_t{1} << 30};
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr("at most 281474976710656 weights"));
  bad = good;
  bad["linears"][linear]["shape"] = "32x64";
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr("shape"));
  bad = good;
  bad["linears"].erase(linear);  // Its codes are then left over.
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr(linear));
  bad = good;
  bad["linears"] = 3;
  EXPECT_THAT(std::string(open_with(bad).message()), HasSubstr("linears"));
  ASSERT_TRUE(WriteFileDurably(path, "{").ok());
  EXPECT_EQ(PackedModel::Open(folder).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedModel::Open(folder_ + "/absent").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ExportTest, AdapterInPeftsLayout) {
  const PeftAdapter adapter = RandomAdapter(base_->config());
  const std::string folder = folder_ + "/adapter";
  const auto written = WritePeftAdapter(folder, adapter);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(*written, ElementsAre("adapter_config.json", "adapter_model.safetensors"));
  const nlohmann::json config = ReadJson(folder + "/adapter_config.json");
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["r"], 4);
  EXPECT_TRUE(config["lora_alpha"].is_number_integer());
  EXPECT_EQ(config["lora_alpha"], 8);
  EXPECT_THAT(
      config["target_modules"].get<std::vector<std::string>>(),
      ElementsAre("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"));
  auto file = SafetensorsReader::Open(folder + "/adapter_model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 5 * 7 * 2);
  const TensorView& b =
      (*file)->tensors().at("base_model.model.model.layers.2.mlp.down_proj.lora_B.weight");
  EXPECT_EQ(b.dtype, DType::kF32);
  EXPECT_TRUE(at::equal(TensorFromView(b, nullptr), adapter.b[2][LinearKind::kDown]));
  const TensorView& a =
      (*file)->tensors().at("base_model.model.model.layers.2.mlp.down_proj.lora_A.weight");
  EXPECT_THAT(a.shape, ElementsAre(4, 172));
  int64_t bytes = 0;
  for (const auto& [name, view] : (*file)->tensors()) bytes += view.bytes.size();
  EXPECT_EQ(AdapterBytes(adapter), bytes);
}

TEST_F(ExportTest, AnAdapterOnSomeLinearsNamesThem) {
  PeftAdapter adapter = RandomAdapter(base_->config());
  for (PerLinear<at::Tensor>* block : {&adapter.a[0], &adapter.b[0]}) {
    (*block)[LinearKind::kQuery] = at::Tensor();
  }
  adapter.alpha = 2.5;
  const std::string folder = folder_ + "/partial_adapter";
  ASSERT_TRUE(WritePeftAdapter(folder, adapter).ok());
  const nlohmann::json config = ReadJson(folder + "/adapter_config.json");
  EXPECT_EQ(config["target_modules"].size(), 5 * 7 - 1);
  EXPECT_EQ(config["target_modules"][0], "model.layers.0.mlp.down_proj");
  EXPECT_EQ(config["lora_alpha"], 2.5);
}

TEST_F(ExportTest, AdaptersThatDoNotFitAreRefused) {
  PeftAdapter adapter = RandomAdapter(base_->config());
  adapter.a[3][LinearKind::kUp] = at::zeros({5, 64});
  EXPECT_THAT(std::string(WritePeftAdapter(folder_ + "/bad", adapter).status().message()),
              HasSubstr("model.layers.3.mlp.up_proj"));
  adapter.a[3][LinearKind::kUp] = at::Tensor();  // B alone.
  EXPECT_THAT(std::string(WritePeftAdapter(folder_ + "/bad", adapter).status().message()),
              HasSubstr("model.layers.3.mlp.up_proj"));
  EXPECT_FALSE(WritePeftAdapter(folder_ + "/bad", {.rank = 4, .alpha = 8}).ok());
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/bad"));
}

TEST_F(ExportTest, ModelCardSaysWhatWasDone) {
  ModelCard card{.base_model = "file:///models/a \"b\"\n",
                 .pruning = "25 % | uniform",
                 .rows = {{.label = "original",
                           .weight_bytes = 1000,
                           .average_bits = 16,
                           .perplexity = 4.0862},
                          {.label = "chosen",
                           .weight_bytes = 400,
                           .average_bits = 5.25,
                           .perplexity = 4.31,
                           .kl_divergence = 0.0123}},
                 .notes = {"One\nnote"}};
  const auto written = WriteModelCard(folder_ + "/card", card);
  ASSERT_TRUE(written.ok()) << written.status();
  const std::string text = ReadFile(folder_ + "/card/README.md", 1 << 20).value();
  EXPECT_THAT(text, HasSubstr("source_model: \"file:///models/a \\\"b\\\"\\n\"\n"));
  EXPECT_THAT(text, HasSubstr("- **Pruning**: 25 % \\| uniform\n"));
  EXPECT_THAT(text, HasSubstr("| original | 1000 | 16.000 | 4.0862 |  |\n"));
  EXPECT_THAT(text, HasSubstr("| chosen | 400 | 5.250 | 4.3100 | 0.01230 |\n"));
  EXPECT_THAT(text, HasSubstr("- One note\n"));
  EXPECT_THAT(text, Not(HasSubstr("Fine-tuning**")));
  EXPECT_THAT(text, Not(HasSubstr("## Use")));
  card.use = "Load `it`.";
  EXPECT_THAT(RenderModelCard(card), HasSubstr("\n## Use\n\nLoad `it`.\n"));
}

// A whole export: the merged model, the packed base and the adapter belong together.
TEST_F(ExportTest, TheMergedModelIsThePackedBaseWithTheAdapter) {
  const PeftAdapter adapter = RandomAdapter(base_->config());
  MemoryWeightSource merged = Merge(*quantized_, adapter);
  ASSERT_TRUE(WriteHfModel(folder_ + "/model", merged, {.tokenizer_from = kModel}).ok());
  ASSERT_TRUE(WritePackedModel(folder_ + "/quantized", *quantized_).ok());
  ASSERT_TRUE(WritePeftAdapter(folder_ + "/adapter", adapter).ok());

  const std::unique_ptr<WeightSource> exported = OpenModel(folder_ + "/model");
  const at::Tensor ids = WriteTexts(*base_);
  const double perplexity = Perplexity(*exported, ids);
  // bfloat16 keeps 8 bits: the rounding moves the perplexity by far less than the adapter does.
  EXPECT_NEAR(perplexity / Perplexity(merged, ids), 1, 0.01);
  EXPECT_GT(std::abs(Perplexity(*quantized_, ids) / perplexity - 1), 0.02);

  ASSERT_TRUE(WriteDocuments(folder_ + "/ids.json", ids, perplexity).ok());
}

std::map<std::string, GgmlType> GgufTypes(const ModelConfig& config, GgmlType type) {
  std::map<std::string, GgmlType> types;
  for (const auto& [linear, format] : UniformAssignment(config, {})) types[linear] = type;
  return types;
}

// In float32, and in each type that holds bfloat16 weights exactly: what is read back is what was
// written, for every family and RoPE scaling.
TEST_F(ExportTest, GgufModelIsReadBackAsWritten) {
  for (const std::string model :
       {"data/models/stories260k", "tests/golden/logits/tiny-llama3",
        "tests/golden/logits/tiny-mistral", "tests/golden/logits/tiny-qwen2"}) {
    const auto source = OpenModel(model);
    const ModelConfig& config = source->config();
    GgufModelOptions options;
    options.linears = GgufTypes(config, GgmlType::kF32);
    options.embedding = GgmlType::kF32;
    // The tiny models have no tokenizer of their own.
    options.tokenizer =
        ReadTokenizerFiles("tests/golden/gguf/tokenizer-sentencepiece.gguf").value();
    if (config.vocab_size < 512) {
      EXPECT_FALSE(WriteGgufModel(folder_ + "/no.gguf", *source, options).ok()) << "ids beyond";
      options.tokenizer = {{"tokenizer.json",
                            R"({"added_tokens":[],"pre_tokenizer":{"type":"ByteLevel",)"
                            R"("add_prefix_space":false,"use_regex":true},"model":{"type":"BPE",)"
                            R"("vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}})"}};
    }
    const std::string path =
        folder_ + "/" + std::filesystem::path(model).filename().string() + ".gguf";
    const auto summary = WriteGgufModel(path, *source, options);
    ASSERT_TRUE(summary.ok()) << model << summary.status();
    EXPECT_THAT(summary->notes, ::testing::IsEmpty());
    auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->config().blocks, config.blocks);
    EXPECT_EQ((*checkpoint)->config().rope_scaling.kind, config.rope_scaling.kind);
    EXPECT_EQ((*checkpoint)->config().rope_scaling.original_max_position_embeddings,
              config.rope_scaling.original_max_position_embeddings);
    const auto read = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
    CheckpointTensors expected(*source), actual(*read);
    for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
      EXPECT_TRUE(at::equal(expected.Get(tensor.name), actual.Get(tensor.name)))
          << model << " " << tensor.name;
    }
  }
}

TEST_F(ExportTest, GgufTypesHoldWeightsAsWellAsTheyPromise) {
  const ModelConfig& config = base_->config();
  const at::Tensor ids = WriteTexts(*base_);
  const double perplexity = Perplexity(*base_, ids);
  GgufModelOptions options;
  options.tokenizer = ReadTokenizerFiles(kModel).value();
  // Perplexity may rise by this factor; the more bits, the less.
  for (const auto& [type, factor] :
       {std::pair(GgmlType::kF16, 1.001), std::pair(GgmlType::kBF16, 1.005),
        std::pair(GgmlType::kQ8_0, 1.01), std::pair(GgmlType::kQ5_1, 1.1),
        std::pair(GgmlType::kQ5_0, 1.15), std::pair(GgmlType::kQ4_1, 1.3),
        std::pair(GgmlType::kQ4_0, 1.5)}) {
    options.linears = GgufTypes(config, type);
    options.embedding = type == GgmlType::kF16 ? GgmlType::kF16 : GgmlType::kBF16;
    const std::string path = folder_ + "/" + InfoOf(type).name + ".gguf";
    const auto summary = WriteGgufModel(path, *base_, options);
    ASSERT_TRUE(summary.ok()) << summary.status();
    const auto read = OpenModel(path);
    const double measured = Perplexity(*read, ids);
    std::printf("%s: perplexity %.4f, float32 %.4f\n", InfoOf(type).name, measured, perplexity);
    EXPECT_LT(measured, factor * perplexity) << InfoOf(type).name;
    EXPECT_GT(measured, perplexity / factor) << InfoOf(type).name;
    // stories260k's MLP has 172 channels, which is no multiple of 32.
    const bool blocks = InfoOf(type).block_size > 1;
    EXPECT_EQ(summary->notes.size(), blocks ? 1u : 0u);
    if (blocks) {
      EXPECT_THAT(summary->notes[0], HasSubstr("5 tensors are stored as F16 instead of"));
    }
    auto checkpoint = Checkpoint::Open(path);
    EXPECT_EQ((*checkpoint)->weight_bytes(), summary->weight_bytes);
  }
}

TEST_F(ExportTest, GgufTypesThatDoNotFitARowAreReplaced) {
  EXPECT_EQ(FittingType(GgmlType::kQ4_K, 512), GgmlType::kQ4_K);
  EXPECT_EQ(FittingType(GgmlType::kQ4_K, 576), GgmlType::kQ4_1);
  EXPECT_EQ(FittingType(GgmlType::kQ6_K, 576), GgmlType::kQ8_0);
  EXPECT_EQ(FittingType(GgmlType::kQ4_K, 172), GgmlType::kF16);
  EXPECT_EQ(FittingType(GgmlType::kQ4_0, 172), GgmlType::kF16);
  EXPECT_EQ(FittingType(GgmlType::kF32, 7), GgmlType::kF32);
}

TEST_F(ExportTest, GgufRefusesWhatItCannotHold) {
  const TokenizerFiles tokenizer = ReadTokenizerFiles(kModel).value();
  EXPECT_TRUE(CheckGgufModel(base_->config(), tokenizer).ok());
  ModelConfig uneven = base_->config();
  uneven.blocks[1].intermediate_size = 64;
  EXPECT_THAT(std::string(CheckGgufModel(uneven, tokenizer).message()),
              HasSubstr("its blocks differ in shape (pruning layout PER_LAYER)"));
  EXPECT_THAT(
      std::string(CheckGgufModel(OpenModel("tests/golden/logits/tiny-qwen3")->config(), tokenizer)
                      .message()),
      HasSubstr("no biases for Qwen3"));
  const TokenizerFiles other = {
      {"tokenizer.json", R"({"model":{"type":"WordPiece","vocab":{"a":0}}})"}};
  EXPECT_THAT(std::string(CheckGgufModel(base_->config(), other).message()),
              HasSubstr("its model is \"WordPiece\", not BPE"));
  const TokenizerFiles split = {{"tokenizer.json",
                                 R"({"pre_tokenizer":{"type":"Whitespace"},)"
                                 R"("model":{"type":"BPE","vocab":{"a":0},"merges":[]}})"}};
  EXPECT_THAT(std::string(CheckGgufModel(base_->config(), split).message()),
              HasSubstr("none of those that have a name in GGUF and are known here: default"));
}

}  // namespace
}  // namespace qpruner::engine
