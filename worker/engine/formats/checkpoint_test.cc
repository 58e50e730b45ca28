#include "worker/engine/formats/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "worker/engine/formats/safetensors_writer.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// A folder with a small valid model, to be spoilt.
class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              absl::StrCat("checkpoint_test_", ::getpid(), "_",
                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    config_ = {{"model_type", "llama"},
               {"vocab_size", 5},
               {"hidden_size", 8},
               {"num_hidden_layers", 2},
               {"num_attention_heads", 2},
               {"num_key_value_heads", 1},
               {"intermediate_size", 6},
               {"max_position_embeddings", 32},
               {"tie_word_embeddings", false}};
    WriteConfig();
    auto config = ParseModelConfig(config_.dump());
    ASSERT_TRUE(config.ok()) << config.status();
    for (const ExpectedTensor& expected : ExpectedTensors(*config)) {
      Set(expected.name, DType::kF32, expected.shape);
    }
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void WriteConfig() { Write("config.json", config_.dump()); }
  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  // Zeros of that kind.
  void Set(const std::string& name, DType dtype, std::vector<int64_t> shape) {
    int64_t bytes = DTypeSize(dtype);
    for (int64_t size : shape) bytes *= size;
    SetBytes(name, dtype, std::move(shape), std::string(static_cast<size_t>(bytes), '\0'));
  }
  void SetBytes(const std::string& name, DType dtype, std::vector<int64_t> shape,
                std::string bytes) {
    tensors_[name] = {name, dtype, std::move(shape), [bytes] { return bytes; }};
  }
  void WriteFile(const std::string& file, const std::function<bool(const std::string&)>& wanted) {
    std::vector<TensorToWrite> chosen;
    for (const auto& [name, tensor] : tensors_) {
      if (wanted(name)) chosen.push_back(tensor);
    }
    absl::Status status = WriteSafetensors(folder_ / file, chosen, {});
    ASSERT_TRUE(status.ok()) << status;
  }
  void WriteSingle() {
    WriteFile("model.safetensors", [](const std::string&) { return true; });
  }
  static bool InFirst(const std::string& name) { return name.find("layers.0") != name.npos; }
  // Two shards and an index that fits them.
  Json WriteShards() {
    WriteFile("a.safetensors", [](const std::string& name) { return InFirst(name); });
    WriteFile("b.safetensors", [](const std::string& name) { return !InFirst(name); });
    Json index = {{"metadata", Json::object()}, {"weight_map", Json::object()}};
    for (const auto& [name, tensor] : tensors_) {
      index["weight_map"][name] = InFirst(name) ? "a.safetensors" : "b.safetensors";
    }
    return index;
  }
  std::string Refusal(absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    auto checkpoint = Checkpoint::Open(folder_);
    EXPECT_EQ(checkpoint.status().code(), code) << checkpoint.status();
    return std::string(checkpoint.status().message());
  }
  std::string IndexRefusal(const Json& index,
                           absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    Write("model.safetensors.index.json", index.dump());
    return Refusal(code);
  }

  std::filesystem::path folder_;
  Json config_;
  std::map<std::string, TensorToWrite> tensors_;
};

TEST_F(CheckpointTest, OpensASingleFile) {
  Set("model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {2});
  WriteSingle();
  auto checkpoint = Checkpoint::Open(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->CheckFinite().ok());
  EXPECT_EQ((*checkpoint)->tensor("lm_head.weight").shape, (std::vector<int64_t>{5, 8}));
  // 2 * 5 * 8 outside, 8 final norm, and a block: 2 norms, q, k, v, o, gate, up, down.
  EXPECT_EQ((*checkpoint)->weight_bytes(),
            4 * (80 + 8 + 2 * (16 + 64 + 32 + 32 + 64 + 48 + 48 + 48)));
}

TEST_F(CheckpointTest, OpensShards) {
  Write("model.safetensors.index.json", WriteShards().dump());
  auto checkpoint = Checkpoint::Open(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensor("model.norm.weight").bytes.size(), 32u);
}

TEST_F(CheckpointTest, RefusesAnIndexThatLies) {
  const Json good = WriteShards();
  Json index = good;
  index["weight_map"]["model.norm.weight"] = "../b.safetensors";
  EXPECT_THAT(IndexRefusal(index), HasSubstr("a shard must be a plain name"));
  index["weight_map"]["model.norm.weight"] = "/etc/passwd";
  EXPECT_THAT(IndexRefusal(index), HasSubstr("a shard must be a plain name"));
  index["weight_map"]["model.norm.weight"] = "..";
  EXPECT_THAT(IndexRefusal(index), HasSubstr("a shard must be a plain name"));
  index["weight_map"]["model.norm.weight"] = 3;
  EXPECT_THAT(IndexRefusal(index), HasSubstr("\"model.norm.weight\""));
  index["weight_map"]["model.norm.weight"] = "c.safetensors";
  EXPECT_THAT(IndexRefusal(index, absl::StatusCode::kNotFound), HasSubstr("c.safetensors"));
  index["weight_map"]["model.norm.weight"] = "a.safetensors";
  EXPECT_THAT(IndexRefusal(index), HasSubstr("places in a.safetensors"));
  index = good;
  index["weight_map"].erase("model.norm.weight");
  EXPECT_THAT(IndexRefusal(index), HasSubstr("does not name"));
  index = good;
  index["weight_map"]["more"] = "a.safetensors";
  EXPECT_THAT(IndexRefusal(index), HasSubstr("\"more\" in a.safetensors, which does not hold it"));
  EXPECT_THAT(IndexRefusal(Json::array()), HasSubstr("not a JSON object"));
  EXPECT_THAT(IndexRefusal({{"weight_map", Json::array()}}), HasSubstr("must be an object"));
  EXPECT_THAT(IndexRefusal({{"weight_map", Json::object()}}), HasSubstr("names no tensors"));
}

TEST_F(CheckpointTest, RefusesTensorsThatTheConfigDoesNotCallFor) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  Set(name, DType::kF32, {7, 8});
  WriteSingle();
  EXPECT_EQ(Refusal(),
            "Tensor model.layers.1.mlp.up_proj.weight has shape [7, 8], but config.json calls for "
            "[6, 8]");
  Set(name, DType::kI32, {6, 8});
  WriteSingle();
  EXPECT_THAT(Refusal(), HasSubstr("has dtype I32; weights must be F32, F16 or BF16"));
  tensors_.erase(name);
  WriteSingle();
  EXPECT_THAT(Refusal(), HasSubstr("lacks a tensor that its config.json calls for: " + name));
  Set(name, DType::kBF16, {6, 8});
  Set("model.layers.0.self_attn.q_proj.bias", DType::kF32, {8});
  WriteSingle();
  EXPECT_THAT(Refusal(), HasSubstr("does not call for: \"model.layers.0.self_attn.q_proj.bias\""));
  tensors_.erase("model.layers.0.self_attn.q_proj.bias");
  WriteSingle();
  EXPECT_TRUE(Checkpoint::Open(folder_).ok());
}

TEST_F(CheckpointTest, ATiedModelMayStoreItsMatrixUnderEitherNameOrBoth) {
  config_["tie_word_embeddings"] = true;
  WriteConfig();
  WriteSingle();
  ASSERT_TRUE(Checkpoint::Open(folder_).ok());
  tensors_.erase("model.embed_tokens.weight");
  WriteSingle();
  auto checkpoint = Checkpoint::Open(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensor("model.embed_tokens.weight").bytes.size(), 160u);
  tensors_.erase("lm_head.weight");
  WriteSingle();
  EXPECT_THAT(Refusal(), HasSubstr("model.embed_tokens.weight"));
}

TEST_F(CheckpointTest, FindsWeightsThatAreNotFinite) {
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  const auto finite = [&](DType dtype, uint32_t bits, size_t position) {
    const auto size = static_cast<size_t>(DTypeSize(dtype));
    std::string bytes(48 * size, '\0');
    std::memcpy(bytes.data() + position * size, &bits, size);
    SetBytes(name, dtype, {8, 6}, bytes);
    WriteSingle();
    auto checkpoint = Checkpoint::Open(folder_);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return (*checkpoint)->CheckFinite();
  };
  EXPECT_EQ(
      finite(DType::kF32, 0x7f800000, 47).message(),  // Infinity.
      "Tensor " + name + " holds an infinity or NaN at element 47; all weights must be finite");
  EXPECT_FALSE(finite(DType::kF32, 0xffc00001, 0).ok());  // A NaN.
  EXPECT_TRUE(finite(DType::kF32, 0x7f7fffff, 3).ok());   // The largest float.
  EXPECT_FALSE(finite(DType::kF16, 0xfc00, 5).ok());
  EXPECT_TRUE(finite(DType::kF16, 0x7bff, 5).ok());
  EXPECT_FALSE(finite(DType::kBF16, 0x7fc0, 5).ok());
  EXPECT_TRUE(finite(DType::kBF16, 0x7f7f, 5).ok());
}

TEST_F(CheckpointTest, SaysWhichFileIsMissing) {
  EXPECT_THAT(Refusal(absl::StatusCode::kNotFound), HasSubstr("neither model.safetensors nor"));
  std::filesystem::remove(folder_ / "config.json");
  EXPECT_THAT(Refusal(absl::StatusCode::kNotFound), HasSubstr("no config.json"));
  Write("plain", "");
  EXPECT_THAT(std::string(Checkpoint::Open(folder_ / "plain").status().message()),
              HasSubstr("give a .gguf file, or the folder"));
  EXPECT_EQ(Checkpoint::Open(folder_ / "absent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qpruner::engine
