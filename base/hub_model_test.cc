#include "base/hub_model.h"

#include "base/model_file.h"
#include "gtest/gtest.h"

namespace qpruner {
namespace {

TEST(HubModel, TakesAnOrganizationANameAndARevision) {
  const auto plain = HubModel::Parse("hf://meta-llama/Llama-3.2-1B");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->repository, "meta-llama/Llama-3.2-1B");
  EXPECT_EQ(plain->revision, "main");
  EXPECT_EQ(HubModel::Parse("hf://a/b@refs/pr/3")->revision, "refs/pr/3");
  for (const char* bad : {"",
                          "hf://",
                          "hf://a",
                          "hf://a/b/c",
                          "hf:///b",
                          "hf://a/",
                          "hf://a/b@",
                          "hf://../b",
                          "hf://a/..",
                          "hf://a/b@../../x",
                          "hf://a/b@x@y",
                          "hf://a/b c",
                          "hf://a/b?x",
                          "hf://a/b#x",
                          "hf://a/b%2f",
                          "hf://-a/b",
                          "hf://a/.b",
                          "HF://a/b",
                          "https://a/b",
                          "hf://a/b\n"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(HubModel::Parse(bad).status())) << bad;
  }
}

TEST(ModelFile, IsWeightsJsonOrATokenizer) {
  for (const char* name : {"model.safetensors", "model-00001-of-00002.safetensors", "config.json",
                           "model.safetensors.index.json", "tokenizer.model", "merges.txt"}) {
    EXPECT_TRUE(IsModelFile(name)) << name;
  }
  for (const char* name : {"", "pytorch_model.bin", "modeling_llama.py", "consolidated.safetensors",
                           "onnx/config.json", "../config.json", "/config.json", ".json",
                           "a b.json", "README.md", "model.safetensors.sh"}) {
    EXPECT_FALSE(IsModelFile(name)) << name;
  }
}

}  // namespace
}  // namespace qpruner
