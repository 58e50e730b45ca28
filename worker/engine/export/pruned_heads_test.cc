// Every family with half of its heads, in every export: what is read back computes the same. The
// engines that load the exports read the same folders in tests/compat:
//   QPRUNER_EXPORT_DIR=/tmp/export build/release/tests/engine_export_test
//   tests/compat/run serving_check.py /tmp/export/pruned-heads
//   tests/compat/run gguf_serving_check.py /tmp/export/pruned-heads
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/export/bitsandbytes_model.h"
#include "worker/engine/export/checkpoint_tensors.h"
#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/gguf_model.h"
#include "worker/engine/export/hf_model.h"
#include "worker/engine/export/testing_model.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {
namespace {

using nlohmann::json;

constexpr char kTokenizer[] = "data/models/stories260k";

// Random weights of a family with 4 of 8 heads and 2 of 4 KV groups. Rows are whole blocks of 128
// (attention's output) and 256 (all others).
MemoryWeightSource ModelWithPrunedHeads(const json& family) {
  json fields = {{"hidden_act", "silu"},
                 {"vocab_size", 512},
                 {"hidden_size", 256},
                 {"head_dim", 32},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"intermediate_size", 256},
                 {"num_hidden_layers", 2},
                 {"max_position_embeddings", 256},
                 {"rms_norm_eps", 1e-5},
                 {"tie_word_embeddings", false},
                 {"rope_theta", 10000.0},
                 {"bos_token_id", 1},
                 {"eos_token_id", 2}};
  fields.update(family);
  ModelConfig config = ParseModelConfig(fields.dump()).value();
  at::Generator generator = at::detail::createCPUGenerator(7);
  // Values that bfloat16 holds, so that no export rounds what another does not.
  const auto normal = [&](const std::vector<int64_t>& shape, double mean, double deviation) {
    return at::empty(shape, at::kDouble)
        .normal_(mean, deviation, generator)
        .to(at::kBFloat16)
        .to(at::kFloat);
  };
  std::vector<BlockWeights> blocks(config.blocks.size());
  for (size_t block = 0; block < blocks.size(); ++block) {
    for (const LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> shape = LinearShape(config, config.blocks[block], kind);
      blocks[block].weight[kind] = normal(shape, 0, 1.5 / std::sqrt(static_cast<double>(shape[1])));
      if (LinearHasBias(config, kind)) blocks[block].bias[kind] = normal({shape[0]}, 0, 0.3);
    }
    blocks[block].attention_norm = normal({config.hidden_size}, 1, 0.2);
    blocks[block].mlp_norm = normal({config.hidden_size}, 1, 0.2);
    if (config.query_key_norm) {
      blocks[block].query_norm = normal({config.head_dim}, 1, 0.2);
      blocks[block].key_norm = normal({config.head_dim}, 1, 0.2);
    }
  }
  at::Tensor embedding = normal({config.vocab_size, config.hidden_size}, 0, 1);
  at::Tensor norm = normal({config.hidden_size}, 1, 0.2);
  at::Tensor head = normal({config.vocab_size, config.hidden_size}, 0, 0.15);
  return MemoryWeightSource(std::move(config), std::move(blocks), std::move(embedding),
                            std::move(norm), std::move(head));
}

struct FamilyCase {
  const char* name;
  json fields;
};

class PrunedHeadsTest : public ::testing::TestWithParam<FamilyCase> {
 protected:
  PrunedHeadsTest() : model_(ModelWithPrunedHeads(GetParam().fields)), ids_(WriteTexts(model_)) {
    at::set_num_threads(1);
  }

  std::string Folder(const std::string& format, WeightSource& source) {
    const std::string folder =
        absl::StrCat(export_folder_.path(), "/pruned-heads/", GetParam().name, "-", format);
    EXPECT_TRUE(CreateFolders(folder).ok());
    EXPECT_TRUE(WriteDocuments(folder + "/documents.json", ids_, Perplexity(source, ids_)).ok());
    return folder;
  }
  std::unique_ptr<QuantizedSource> Quantized(const FormatAssignment& assignment) {
    return QuantizedSource::Create(model_, assignment).value();
  }

  ExportFolder export_folder_;
  MemoryWeightSource model_;
  at::Tensor ids_;
};

// A type of GGUF per kind of linear, K-quants among them.
std::map<std::string, GgmlType> MixedTypes(const ModelConfig& config) {
  std::map<std::string, GgmlType> types;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    for (const LinearKind kind : {LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue}) {
      types[LinearName(block, kind)] = GgmlType::kQ6_K;
    }
    types[LinearName(block, LinearKind::kOutput)] = GgmlType::kQ5_1;
    types[LinearName(block, LinearKind::kGate)] = GgmlType::kQ4_K;
    types[LinearName(block, LinearKind::kUp)] = GgmlType::kQ4_K;
    types[LinearName(block, LinearKind::kDown)] = GgmlType::kQ8_0;
  }
  return types;
}

TEST_P(PrunedHeadsTest, GgufIsReadBackAsTheSameModel) {
  GgufModelOptions options;
  options.tokenizer = ReadTokenizerFiles(kTokenizer).value();
  for (const bool exact : {true, false}) {
    options.linears = MixedTypes(model_.config());
    options.embedding = exact ? GgmlType::kBF16 : GgmlType::kQ8_0;
    if (exact) {
      for (auto& [linear, type] : options.linears) type = GgmlType::kBF16;
    }
    const std::string folder = Folder(exact ? "gguf-bf16" : "gguf-mixed", model_);
    const auto summary = WriteGgufModel(folder + "/model.gguf", model_, options);
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_THAT(summary->notes, ::testing::IsEmpty());
    const auto read = OpenModel(folder + "/model.gguf");
    EXPECT_EQ(read->config().blocks, model_.config().blocks);
    EXPECT_EQ(read->config().head_dim, 32);
    const double perplexity = Perplexity(*read, ids_);
    ASSERT_TRUE(WriteDocuments(folder + "/documents.json", ids_, perplexity).ok());
    EXPECT_NEAR(perplexity / Perplexity(model_, ids_), 1, exact ? 1e-6 : 0.3);
    if (!exact) continue;
    CheckpointTensors expected(model_), actual(*read);
    for (const ExpectedTensor& tensor : ExpectedTensors(model_.config())) {
      EXPECT_TRUE(at::equal(expected.Get(tensor.name), actual.Get(tensor.name))) << tensor.name;
    }
  }
}

TEST_P(PrunedHeadsTest, FoldersSayTheHeadSize) {
  const std::string plain = Folder("bf16", model_);
  ASSERT_TRUE(WriteHfModel(plain, model_, {.tokenizer_from = kTokenizer}).ok());
  FormatAssignment mixed =
      UniformAssignment(model_.config(), Format::IntegerGroup(4, 32, /*symmetric=*/true));
  for (const LinearKind kind : kLinearKinds) {
    mixed[LinearName(1, kind)] = Format::IntegerGroup(8, 128, /*symmetric=*/true);
  }
  const auto integers = Quantized(mixed);
  const std::string compressed = Folder("compressed-tensors", *integers);
  ASSERT_TRUE(WriteCompressedTensors(compressed, *integers, kTokenizer).ok());
  const auto floats = Quantized(UniformAssignment(model_.config(), Format::NormalFloat(4)));
  const std::string bitsandbytes = Folder("bitsandbytes", *floats);
  ASSERT_TRUE(WriteBitsandbytes(bitsandbytes, *floats, kTokenizer).ok());
  for (const std::string& folder : {plain, compressed, bitsandbytes}) {
    const json config = ReadJson(folder + "/config.json");
    EXPECT_EQ(config["head_dim"], 32) << folder;
    EXPECT_EQ(config["num_attention_heads"], model_.config().blocks[0].num_heads) << folder;
  }
}

const json kLlama3Scaling = {{"rope_type", "llama3"},
                             {"factor", 8.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 64}};

INSTANTIATE_TEST_SUITE_P(
    Families, PrunedHeadsTest,
    ::testing::Values(
        FamilyCase{"llama", {{"model_type", "llama"}, {"rope_scaling", kLlama3Scaling}}},
        FamilyCase{"llama-biased", {{"model_type", "llama"}, {"attention_bias", true}}},
        FamilyCase{"mistral", {{"model_type", "mistral"}, {"sliding_window", nullptr}}},
        FamilyCase{"qwen2", {{"model_type", "qwen2"}}},
        FamilyCase{"qwen2-scaled", {{"model_type", "qwen2"}, {"rope_scaling", kLlama3Scaling}}},
        // In GGUF as its own architecture: heads as wide together as the model.
        FamilyCase{"qwen2-whole", {{"model_type", "qwen2"}, {"num_attention_heads", 8}}},
        FamilyCase{"qwen3", {{"model_type", "qwen3"}}}),
    [](const auto& info) {
      std::string name = info.param.name;
      name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
      return name;
    });

}  // namespace
}  // namespace qpruner::engine
