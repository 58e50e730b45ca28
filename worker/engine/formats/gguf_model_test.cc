#include "worker/engine/formats/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/half_float.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Golden(const std::string& name) { return "tests/golden/gguf/" + name + ".gguf"; }

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// All values of a tensor as float32.
std::vector<float> Values(const Checkpoint& checkpoint, const std::string& name) {
  const CheckpointTensor& tensor = checkpoint.tensor(name);
  const auto size = static_cast<size_t>(tensor.view().element_count());
  std::string bytes(size * static_cast<size_t>(DTypeSize(tensor.dtype)), '\0');
  // In two pieces, as threads read.
  const int64_t half = tensor.shape[0] / 2;
  checkpoint.ReadRows(name, 0, half, bytes.data());
  checkpoint.ReadRows(name, half, tensor.shape[0] - half,
                      bytes.data() + bytes.size() / static_cast<size_t>(tensor.shape[0]) *
                                         static_cast<size_t>(half));
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) {
    uint16_t bits;
    if (tensor.dtype == DType::kF32) {
      std::memcpy(&values[i], bytes.data() + 4 * i, 4);
    } else {
      std::memcpy(&bits, bytes.data() + 2 * i, 2);
      values[i] = tensor.dtype == DType::kF16 ? FloatFromF16(bits) : FloatFromBf16(bits);
    }
  }
  return values;
}

class GgufModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            absl::StrCat("gguf_model_test_", ::getpid(), "_",
                         ::testing::UnitTest::GetInstance()->current_test_info()->name(), ".gguf");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  // The refusal of a golden file in which `from` is replaced by `to`, of the same length.
  std::string Refusal(const std::string& name, const std::string& from, const std::string& to) {
    std::string bytes = ReadAll(Golden(name));
    const size_t size = bytes.size();
    bytes = absl::StrReplaceAll(bytes, {{from, to}});
    EXPECT_EQ(bytes.size(), size);
    std::ofstream(path_, std::ios::binary) << bytes;
    auto checkpoint = Checkpoint::Open(path_);
    EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument)
        << from << " -> " << to << ": " << checkpoint.status();
    return std::string(checkpoint.status().message());
  }

  std::string path_;
};

// The same model, stored by transformers and as llama.cpp stores it.
TEST_F(GgufModelTest, EqualsTheHuggingFaceFolder) {
  for (const std::string name : {"tiny-llama3", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"}) {
    auto gguf = Checkpoint::Open(Golden(name));
    auto folder = Checkpoint::Open("tests/golden/logits/" + name);
    ASSERT_TRUE(gguf.ok() && folder.ok()) << name << gguf.status() << folder.status();
    const ModelConfig &a = (*gguf)->config(), &b = (*folder)->config();
    EXPECT_EQ(a.model_type, name == "tiny-mistral" ? "llama" : b.model_type);
    EXPECT_EQ(a.vocab_size, b.vocab_size);
    EXPECT_EQ(a.hidden_size, b.hidden_size);
    EXPECT_EQ(a.head_dim, b.head_dim);
    EXPECT_EQ(a.blocks, b.blocks);
    EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
    EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
    EXPECT_EQ(a.rope_theta, b.rope_theta);
    EXPECT_EQ(a.rope_scaling.kind, b.rope_scaling.kind);
    EXPECT_EQ(a.rope_scaling.factor, b.rope_scaling.factor);
    EXPECT_EQ(a.rope_scaling.original_max_position_embeddings,
              b.rope_scaling.original_max_position_embeddings);
    EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
    EXPECT_EQ(a.query_key_value_bias, b.query_key_value_bias);
    EXPECT_EQ(a.output_bias, b.output_bias);
    EXPECT_EQ(a.mlp_bias, b.mlp_bias);
    EXPECT_EQ(a.query_key_norm, b.query_key_norm);
    for (const ExpectedTensor& expected : ExpectedTensors(b)) {
      EXPECT_EQ(Values(**gguf, expected.name), Values(**folder, expected.name))
          << name << " " << expected.name;
    }
    EXPECT_TRUE((*gguf)->CheckFinite().ok());
  }
}

TEST_F(GgufModelTest, NamesTranslateBothWays) {
  for (const char* name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight", "model.layers.31.self_attn.v_proj.bias",
        "model.layers.7.mlp.down_proj.weight", "model.layers.7.self_attn.k_norm.weight",
        "model.layers.7.post_attention_layernorm.weight"}) {
    const auto gguf = GgufNameOf(name);
    ASSERT_TRUE(gguf.has_value()) << name;
    EXPECT_EQ(HuggingFaceNameOf(*gguf), name);
  }
  EXPECT_EQ(GgufNameOf("model.layers.3.self_attn.o_proj.weight"), "blk.3.attn_output.weight");
  for (const char* name :
       {"", "blk.", "blk.0", "blk.0.", "blk.00.attn_q.weight", "blk.x.attn_q.weight",
        "blk.-1.attn_q.weight", "blk.0.attn_q", "blk.0.attn_qkv.weight"}) {
    EXPECT_EQ(HuggingFaceNameOf(name), std::nullopt) << name;
  }
}

TEST_F(GgufModelTest, RowsOfAHeadAreInterleaved) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < 12; ++row) rows.push_back(GgufRowOf(row, 6));
  EXPECT_THAT(rows, ElementsAre(0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11));
}

TEST_F(GgufModelTest, RefusesWhatWouldBeReadWrongly) {
  EXPECT_THAT(Refusal("tiny-qwen2", "qwen2", "phi02"),
              HasSubstr("key general.architecture is not supported: \"phi02\"; supported: llama"));
  EXPECT_THAT(Refusal("tiny-mistral", "llama.rope.freq_base", "llama.rope.freq_bent"),
              HasSubstr("key \"llama.rope.freq_bent\" is not known here"));
  EXPECT_THAT(Refusal("tiny-mistral", "llama.block_count", "llama.black_count"),
              HasSubstr("llama.black_count"));
  EXPECT_THAT(Refusal("tiny-qwen2", "linear", "llnear"),
              HasSubstr("qwen2.rope.scaling.type is not supported: \"llnear\""));
  EXPECT_THAT(Refusal("tiny-mistral", "blk.1.attn_k.weight", "blk.1.attn_x.weight"),
              HasSubstr("tensor \"blk.1.attn_x.weight\" is not part of this architecture"));
  EXPECT_THAT(Refusal("tiny-mistral", "blk.1.attn_k.weight", "blk.7.attn_k.weight"),
              HasSubstr("lacks a tensor that its metadata calls for: "
                        "model.layers.1.self_attn.k_proj.weight"));
  EXPECT_THAT(Refusal("tiny-qwen3", "blk.0.attn_q_norm.weight", "blk.9.attn_q_norm.weight"),
              HasSubstr("model.layers.0.self_attn.q_norm.weight"));
  EXPECT_THAT(Refusal("tiny-llama3", "blk.1.ffn_gate.bias", "blk.9.ffn_gate.bias"),
              HasSubstr("model.layers.1.mlp.gate_proj.bias"));
  EXPECT_THAT(Refusal("tiny-mistral", "token_embd.weight", "taken_embd.weight"),
              HasSubstr("token_embd.weight is missing"));
  // Another number where a dimension was.
  const auto key = [](const std::string& name, uint32_t value) {
    std::string bytes = name + std::string("\x04\0\0\0", 4);
    bytes.append(reinterpret_cast<const char*>(&value), 4);
    return bytes;
  };
  const std::string heads = "llama.attention.head_count";
  EXPECT_THAT(Refusal("tiny-mistral", key(heads, 4), key(heads, 0)),
              HasSubstr("key llama.attention.head_count must be an integer from 1"));
  EXPECT_THAT(Refusal("tiny-mistral", key(heads, 4), key(heads, 3)), HasSubstr("must divide"));
  EXPECT_THAT(Refusal("tiny-mistral", key(heads, 4), key(heads, 2)),
              HasSubstr("self_attn.q_proj.weight has shape"));
  const std::string size = "llama.rope.dimension_count";
  EXPECT_THAT(
      Refusal("tiny-mistral", key(size, 16), key(size, 8)),
      HasSubstr("key llama.rope.dimension_count is not supported unless it equals the head"));
  // A factor of rope_freqs.weight that Llama 3's rule does not give.
  const auto bits = [](float value) { return std::string(reinterpret_cast<char*>(&value), 4); };
  EXPECT_THAT(Refusal("tiny-llama3", bits(8) + bits(8), bits(8) + bits(7.5f)),
              HasSubstr("tensor rope_freqs.weight is not supported"));
}

TEST_F(GgufModelTest, FindsNonFiniteWeights) {
  std::string bytes = ReadAll(Golden("tiny-mistral"));
  auto clean = Checkpoint::Open(Golden("tiny-mistral"));
  ASSERT_TRUE(clean.ok());
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  const std::string content((*clean)->tensor(name).bytes);
  std::string spoilt = content;
  spoilt[2 * 5] = '\x80', spoilt[2 * 5 + 1] = '\x7F';  // bfloat16 infinity at row 0, column 5.
  std::ofstream(path_, std::ios::binary) << absl::StrReplaceAll(bytes, {{content, spoilt}});
  auto checkpoint = Checkpoint::Open(path_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(std::string((*checkpoint)->CheckFinite().message()),
              HasSubstr("Tensor " + name + " holds an infinity or NaN at element 5;"));
}

}  // namespace
}  // namespace qpruner::engine
