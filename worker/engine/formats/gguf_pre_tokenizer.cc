#include "worker/engine/formats/gguf_pre_tokenizer.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace qpruner::engine {

const char kGpt2Expression[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char kDigitExpression[] = R"(\p{N})";

namespace {

constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::vector<PreTokenizer>& All() {
  static const auto* const all = new std::vector<PreTokenizer>{
      {.name = "default",
       .expressions = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Expression, R"(\p{N}+)",
                       R"([0-9][0-9][0-9])"}},
      {.name = "gpt-2", .expressions = {kGpt2Expression}},
      {.name = "llama-bpe", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.name = "llama-v3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.name = "llama3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.name = "qwen2", .expressions = {kQwen2}, .normalize = true},
      {.name = "smollm", .expressions = {kDigitExpression, kGpt2Expression}},
      {.name = "starcoder", .expressions = {kDigitExpression, kGpt2Expression}},
      {.name = "refact", .expressions = {kDigitExpression, kGpt2Expression}},
  };
  return *all;
}

}  // namespace

const PreTokenizer* FindPreTokenizer(const std::vector<std::string>& expressions, bool normalize,
                                     bool ignore_merges) {
  for (const PreTokenizer& known : All()) {
    if (known.normalize == normalize && known.ignore_merges == ignore_merges &&
        std::equal(expressions.begin(), expressions.end(), known.expressions.begin(),
                   known.expressions.end())) {
      return &known;
    }
  }
  return nullptr;
}

const PreTokenizer* FindPreTokenizer(absl::string_view name) {
  for (const PreTokenizer& known : All()) {
    if (name == known.name) return &known;
  }
  return nullptr;
}

std::string SupportedPreTokenizers() {
  return absl::StrJoin(
      All(), ", ", [](std::string* out, const PreTokenizer& known) { out->append(known.name); });
}

}  // namespace qpruner::engine
