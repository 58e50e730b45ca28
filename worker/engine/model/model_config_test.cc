#include "worker/engine/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

Json Llama() {
  return {{"model_type", "llama"},
          {"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 100},
          {"hidden_size", 32},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"intermediate_size", 48},
          {"max_position_embeddings", 256},
          {"rms_norm_eps", 1e-5},
          {"hidden_act", "silu"}};
}

std::string Refusal(const Json& json) {
  auto config = ParseModelConfig(json.dump());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << json;
  return std::string(config.status().message());
}

// What replaces one field of a good config, and the refusal that must follow.
std::string RefusalWith(const char* field, const Json& value) {
  Json json = Llama();
  json[field] = value;
  return Refusal(json);
}

TEST(ModelConfigTest, ReadsLlama) {
  auto config = ParseModelConfig(Llama().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_blocks(), 3);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_EQ(config->blocks[2],
            (BlockShape{.num_heads = 4, .num_kv_heads = 2, .intermediate_size = 48}));
  EXPECT_FALSE(config->query_key_value_bias);
  EXPECT_EQ(ExpectedTensors(*config).size(), 3u + 3 * 9);
}

TEST(ModelConfigTest, FamiliesDifferInBiasesAndNorms) {
  Json json = Llama();
  json["model_type"] = "qwen2";
  json["architectures"] = {"Qwen2ForCausalLM"};
  auto qwen2 = ParseModelConfig(json.dump());
  ASSERT_TRUE(qwen2.ok()) << qwen2.status();
  EXPECT_TRUE(qwen2->query_key_value_bias);
  EXPECT_FALSE(qwen2->output_bias);
  json["model_type"] = "qwen3";
  json["architectures"] = {"Qwen3ForCausalLM"};
  EXPECT_THAT(Refusal(json), HasSubstr("head_dim is missing"));
  json["head_dim"] = 16;
  auto qwen3 = ParseModelConfig(json.dump());
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_TRUE(qwen3->query_key_norm);
  std::set<std::string> names;
  for (const ExpectedTensor& tensor : ExpectedTensors(*qwen3)) names.insert(tensor.name);
  EXPECT_EQ(names.count("model.layers.2.self_attn.q_norm.weight"), 1u);
}

TEST(ModelConfigTest, NamesWhatIsNotSupported) {
  EXPECT_THAT(RefusalWith("model_type", "gpt2"),
              HasSubstr("\"gpt2\"; supported: llama (LlamaForCausalLM), mistral"));
  EXPECT_THAT(RefusalWith("architectures", {"LlamaForSequenceClassification"}),
              HasSubstr("it must be [\"LlamaForCausalLM\"]"));
  EXPECT_THAT(RefusalWith("hidden_act", "gelu"), HasSubstr("\"gelu\"; supported: silu"));
  EXPECT_THAT(RefusalWith("quantization_config", {{"quant_method", "gptq"}}),
              HasSubstr("give the unquantized model"));
  EXPECT_THAT(RefusalWith("rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}),
              HasSubstr("\"yarn\"; supported: default, linear, llama3"));
  EXPECT_THAT(RefusalWith("partial_rotary_factor", 0.5), HasSubstr("partial_rotary_factor"));
}

TEST(ModelConfigTest, BoundsEveryNumber) {
  for (const char* field :
       {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "intermediate_size", "max_position_embeddings"}) {
    for (const Json& bad : {Json(0), Json(-1), Json(1.5), Json("8"), Json(true),
                            Json(int64_t{1} << 40), Json(UINT64_MAX)}) {
      EXPECT_THAT(RefusalWith(field, bad), HasSubstr(field)) << bad;
    }
    if (std::string(field) == "num_key_value_heads") continue;  // Llama may leave it out.
    Json json = Llama();
    json.erase(field);
    EXPECT_THAT(Refusal(json), HasSubstr(std::string(field) + " is missing"));
  }
  for (const Json& bad : {Json(0), Json(-1e-5), Json(2), Json("x")}) {
    EXPECT_THAT(RefusalWith("rms_norm_eps", bad), HasSubstr("rms_norm_eps"));
  }
  EXPECT_THAT(RefusalWith("rope_theta", 0), HasSubstr("rope_theta"));
  EXPECT_THAT(RefusalWith("tie_word_embeddings", 1), HasSubstr("true or false"));
  EXPECT_THAT(RefusalWith("num_key_value_heads", 3), HasSubstr("must divide num_attention_heads"));
  EXPECT_THAT(RefusalWith("head_dim", 7), HasSubstr("must be even"));
  EXPECT_THAT(RefusalWith("hidden_size", 33), HasSubstr("not a multiple of num_attention_heads"));
}

// A head size that is left out is bounded as one that is given: with shapes of their own, blocks
// may have many heads of it.
TEST(ModelConfigTest, BoundsAHeadSizeThatFollowsFromTheWidth) {
  Json json = Llama();
  json["hidden_size"] = 1 << 20;
  json["num_attention_heads"] = 1;
  json["num_key_value_heads"] = 1;
  EXPECT_THAT(Refusal(json), HasSubstr("head_dim is missing, and hidden_size (1048576) is above "
                                       "4096 times num_attention_heads (1)"));
  json["num_attention_heads"] = 256;
  EXPECT_TRUE(ParseModelConfig(json.dump()).ok());
  EXPECT_THAT(RefusalWith("hidden_size", 4), HasSubstr("head_dim must be even"));
}

TEST(ModelConfigTest, RefusesTextThatIsNoObject) {
  for (const char* text : {"", "[]", "7", "{", "{\"a\":1,\"a\":2}"}) {
    EXPECT_EQ(ParseModelConfig(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  // A value this deep would end the process if it were printed.
  const std::string deep = "{\"model_type\":" + std::string(1 << 20, '[');
  EXPECT_THAT(std::string(ParseModelConfig(deep).status().message()), HasSubstr("levels deep"));
}

TEST(ModelConfigTest, BlocksWithOtherGroupsAreReadBack) {
  ModelConfig config = *ParseModelConfig(Llama().dump());
  config.blocks.assign(2, {.num_heads = 7, .num_kv_heads = 1, .intermediate_size = 32});
  config.blocks[1] = {.num_heads = 4, .num_kv_heads = 2, .intermediate_size = 96};
  Json json = ModelConfigToJson(config, "float32");
  json["num_hidden_layers"] = 2;
  const auto again = ParseModelConfig(json.dump());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->blocks, config.blocks);
}

TEST(ModelConfigTest, ReadsRopeInBothSpellings) {
  Json json = Llama();
  json["rope_theta"] = 5e5;
  json["rope_scaling"] = {{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 1.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 128}};
  Json newer = Llama();
  newer["rope_parameters"] = json["rope_scaling"];
  newer["rope_parameters"]["rope_theta"] = 5e5;
  for (const Json& spelling : {json, newer}) {
    auto config = ParseModelConfig(spelling.dump());
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_theta, 5e5);
    EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kLlama3);
    EXPECT_EQ(config->rope_scaling.original_max_position_embeddings, 128);
  }
  // Both: as transformers, which takes rope_scaling unless it is empty.
  Json both = newer;
  both["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 2.0}};
  EXPECT_EQ(ParseModelConfig(both.dump())->rope_scaling.kind, RopeScaling::Kind::kLinear);
  both["rope_scaling"] = newer["rope_parameters"];
  EXPECT_EQ(ParseModelConfig(both.dump())->rope_theta, 5e5);
  both["rope_scaling"] = Json::object();
  EXPECT_EQ(ParseModelConfig(both.dump())->rope_scaling.kind, RopeScaling::Kind::kLlama3);
  json["rope_scaling"].erase("factor");
  EXPECT_THAT(Refusal(json), HasSubstr("rope_scaling.factor is missing"));
}

TEST(ModelConfigTest, ASlidingWindowMustNeverClose) {
  Json json = Llama();
  json["model_type"] = "mistral";
  json["architectures"] = {"MistralForCausalLM"};
  json["sliding_window"] = 128;
  EXPECT_THAT(Refusal(json), HasSubstr("below max_position_embeddings (256): 128"));
  json["sliding_window"] = 256;
  EXPECT_TRUE(ParseModelConfig(json.dump()).ok());
  json["sliding_window"] = nullptr;
  EXPECT_TRUE(ParseModelConfig(json.dump()).ok());
  json["max_position_embeddings"] = 8192;
  EXPECT_TRUE(ParseModelConfig(json.dump()).ok());
  json.erase("sliding_window");  // transformers' default is 4096.
  EXPECT_THAT(Refusal(json), HasSubstr("4096"));
}

TEST(ModelConfigTest, WritesWhatItReads) {
  auto config = ParseModelConfig(Llama().dump());
  ASSERT_TRUE(config.ok());
  config->source["kept"] = "as it was";
  config->blocks.assign(3, {.num_heads = 2, .num_kv_heads = 1, .intermediate_size = 32});
  const Json uniform = ModelConfigToJson(*config, "bfloat16");
  EXPECT_EQ(uniform["kept"], "as it was");
  EXPECT_EQ(uniform["torch_dtype"], "bfloat16");
  EXPECT_EQ(uniform["num_attention_heads"], 2);
  // Two heads of 8: without it a reader would take hidden_size / heads.
  EXPECT_EQ(uniform["head_dim"], 8);
  EXPECT_FALSE(uniform.contains("qpruner_block_shapes"));

  config->blocks[1] = {.num_heads = 4, .num_kv_heads = 2, .intermediate_size = 48};
  const Json mixed = ModelConfigToJson(*config, "float32");
  EXPECT_EQ(mixed["intermediate_size"], 48);
  auto again = ParseModelConfig(mixed.dump());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->blocks, config->blocks);
  Json short_list = mixed;
  short_list["qpruner_block_shapes"].erase(2);
  EXPECT_THAT(Refusal(short_list), HasSubstr("one entry for each of the 3 blocks"));
  Json wrong = mixed;
  wrong["qpruner_block_shapes"][1]["num_key_value_heads"] = 3;
  EXPECT_THAT(Refusal(wrong), HasSubstr("qpruner_block_shapes[1].num_key_value_heads"));
}

}  // namespace
}  // namespace qpruner::engine
