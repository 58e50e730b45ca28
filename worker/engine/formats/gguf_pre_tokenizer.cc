#include "worker/engine/formats/gguf_pre_tokenizer.h"

#include "absl/strings/str_join.h"

namespace qpruner::engine {
namespace {

constexpr char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kDigit[] = R"(\p{N})";
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::vector<PreTokenizer>& All() {
  static const auto* const all = new std::vector<PreTokenizer>{
      {.name = "default",
       .expressions = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", R"([0-9][0-9][0-9])"}},
      {.name = "gpt-2", .expressions = {kGpt2}},
      {.name = "llama-bpe", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.name = "llama-v3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.name = "llama3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.name = "qwen2", .expressions = {kQwen2}, .normalize = true},
      {.name = "smollm", .expressions = {kDigit, kGpt2}},
      {.name = "starcoder", .expressions = {kDigit, kGpt2}},
      {.name = "refact", .expressions = {kDigit, kGpt2}},
  };
  return *all;
}

}  // namespace

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
