// A real model out of a GGUF file, measured as the reference was: SmolLM2-135M-Instruct (Q4_1,
// Q8_0) on WikiText-2. Needs the model (scripts/fetch_smollm2) and the shared data folder; says so
// if it skips.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

std::string Environment(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

TEST(SmolLm2Test, PerplexityOnWikiTextAgreesWithTransformers) {
  const std::string cache = Environment(
      "QPRUNER_CACHE",
      Environment("XDG_CACHE_HOME", Environment("HOME", "/nowhere") + "/.cache") + "/qpruner");
  const std::string model = cache + "/smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf";
  const std::string text =
      Environment("QPRUNER_SHARED_DIR", "../shared") + "/data/corpus/wikitext-2-raw-test.txt";
  if (::access(model.c_str(), R_OK) != 0) {
    GTEST_SKIP() << "No SmolLM2 here (scripts/fetch_smollm2 fetches it): " << model;
  }
  if (::access(text.c_str(), R_OK) != 0) GTEST_SKIP() << "No WikiText-2 here: " << text;

  auto checkpoint = Checkpoint::Open(model);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->CheckFinite().ok());
  auto tokenizer = Tokenizer::Open(model, (*checkpoint)->config().vocab_size);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos(), std::nullopt);
  auto content = ReadFile(text, 8 << 20);
  ASSERT_TRUE(content.ok()) << content.status();
  auto ids = (*tokenizer)->Encode(*content);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->size(), 303'415u);

  // The first 16 windows of 512, without overlap; weights rounded to float16, arithmetic in
  // float32.
  std::vector<TokenIds> windows;
  for (int64_t i = 0; i < 16; ++i) {
    windows.emplace_back(ids->begin() + 512 * i, ids->begin() + 512 * (i + 1));
  }
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  CastSource stored(*source, at::kHalf);
  CastSource rounded(stored, at::kFloat);
  const TokenMetrics metrics = EvaluateModel(rounded, MakeBatches(windows));
  std::printf("SmolLM2, WikiText-2 test, 16 windows of 512: perplexity %.4f\n",
              metrics.perplexity());
  EXPECT_EQ(metrics.token_count, 16 * 511);
  // transformers 5.23, float32; 0.05 % covers other summation orders, not another model.
  EXPECT_NEAR(metrics.perplexity(), 36.0057, 0.0005 * 36.0057);
}

}  // namespace
}  // namespace qpruner::engine
