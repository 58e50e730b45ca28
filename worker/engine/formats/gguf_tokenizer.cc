#include "worker/engine/formats/gguf_tokenizer.h"

#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/gguf_pre_tokenizer.h"
#include "worker/engine/formats/sentencepiece_merges.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr char kTokensKey[] = "tokenizer.ggml.tokens";
constexpr char kTypesKey[] = "tokenizer.ggml.token_type";
constexpr char kScoresKey[] = "tokenizer.ggml.scores";
constexpr char kMergesKey[] = "tokenizer.ggml.merges";
constexpr char kModelKey[] = "tokenizer.ggml.model";
constexpr char kPreKey[] = "tokenizer.ggml.pre";
constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581, SentencePiece's.

// llama.cpp's, include/llama.h.
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

absl::Status Invalid(absl::string_view key, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("key ", key, " ", rule));
}

// The token table: unique, UTF-8, one type each.
struct Vocabulary {
  std::vector<absl::string_view> tokens;
  std::vector<int64_t> types;

  // Fillers up to the model's vocabulary size have no text that could be met.
  bool IsFiller(size_t id) const { return types[id] == kUnused || tokens[id].empty(); }
};

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufMetadata& metadata) {
  Vocabulary vocabulary;
  ASSIGN_OR_RETURN(vocabulary.tokens, metadata.Strings(kTokensKey));
  const size_t count = vocabulary.tokens.size();
  if (count == 0) return Invalid(kTokensKey, "must not be empty");
  vocabulary.types.assign(count, kNormal);
  if (metadata.Has(kTypesKey)) {
    ASSIGN_OR_RETURN(vocabulary.types, metadata.Integers(kTypesKey));
    if (vocabulary.types.size() != count) {
      return Invalid(kTypesKey, absl::StrCat("must have one value for each of the ", count,
                                             " tokens, has ", vocabulary.types.size()));
    }
  }
  std::unordered_map<absl::string_view, size_t, absl::Hash<absl::string_view>> seen;
  for (size_t id = 0; id < count; ++id) {
    if (vocabulary.types[id] < kNormal || vocabulary.types[id] > kByte) {
      return Invalid(kTypesKey,
                     absl::StrCat("[", id, "] must be from 1 to 6, is ", vocabulary.types[id]));
    }
    if (vocabulary.IsFiller(id)) continue;
    const auto [earlier, is_new] = seen.emplace(vocabulary.tokens[id], id);
    if (!is_new) {
      return Invalid(kTokensKey, absl::StrCat("has the same token at ", earlier->second, " and ",
                                              id, ": ", QuotedForMessage(vocabulary.tokens[id])));
    }
  }
  return vocabulary;
}

// The token that `key` names; nullopt if the key is missing.
absl::StatusOr<std::optional<int64_t>> SpecialToken(const GgufMetadata& metadata,
                                                    const std::string& key,
                                                    const Vocabulary& vocabulary) {
  if (!metadata.Has(key)) return std::nullopt;
  ASSIGN_OR_RETURN(
      const int64_t id,
      metadata.Integer(key, {}, 0, static_cast<int64_t>(vocabulary.tokens.size()) - 1));
  if (vocabulary.IsFiller(static_cast<size_t>(id))) {
    return Invalid(key, absl::StrCat("must name a token that is used, is ", id));
  }
  return id;
}

Json VocabularyJson(const Vocabulary& vocabulary) {
  Json json = Json::object();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (!vocabulary.IsFiller(id)) json[std::string(vocabulary.tokens[id])] = id;
  }
  return json;
}

// Tokens that are looked for in the text itself, before anything else.
Json AddedTokensJson(const Vocabulary& vocabulary) {
  Json json = Json::array();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const int64_t type = vocabulary.types[id];
    if (vocabulary.IsFiller(id)) continue;
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    json.push_back({{"id", id},
                    {"content", std::string(vocabulary.tokens[id])},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", false},
                    {"special", type != kUserDefined}});
  }
  return json;
}

// What is put around a text.
struct Surroundings {
  std::optional<int64_t> bos;  // Set only where it is added.
  std::optional<int64_t> eos;
};

Json PostProcessorJson(const Surroundings& around, const Vocabulary& vocabulary) {
  Json single = Json::array();
  Json pair = Json::array();
  Json special = Json::object();
  const auto add = [&](std::optional<int64_t> id) {
    if (!id) return;
    const std::string token(vocabulary.tokens[static_cast<size_t>(*id)]);
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    pair.push_back(single.back());
    special[token] = {{"id", token}, {"ids", Json::array({*id})}, {"tokens", Json::array({token})}};
  };
  add(around.bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  pair.push_back(single.back());
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  add(around.eos);
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(special)}};
}

Json SequenceJson(absl::string_view member, Json parts) {
  return {{"type", "Sequence"}, {std::string(member), std::move(parts)}};
}

// Splits "left right" at the first space behind the first character, as llama.cpp does: a token may
// begin with a space, but not hold one elsewhere.
absl::StatusOr<Json> MergesJson(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const std::vector<absl::string_view> merges, metadata.Strings(kMergesKey));
  Json json = Json::array();
  for (size_t i = 0; i < merges.size(); ++i) {
    const size_t space = merges[i].find(' ', 1);
    if (space == absl::string_view::npos || space + 1 == merges[i].size()) {
      return Invalid(kMergesKey,
                     absl::StrCat("[", i, "] must be two tokens with a space between, is ",
                                  QuotedForMessage(merges[i])));
    }
    json.push_back(
        {std::string(merges[i].substr(0, space)), std::string(merges[i].substr(space + 1))});
  }
  return json;
}

Json ByteLevelJson(bool add_prefix_space) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", false}};
}

Json BpeJson(const Vocabulary& vocabulary, Json merges) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", VocabularyJson(vocabulary)},
          {"merges", std::move(merges)}};
}

// normalizer, pre_tokenizer, decoder and model of a byte-level BPE tokenizer.
absl::StatusOr<OrderedJson> ByteLevelBpe(const GgufMetadata& metadata, const Vocabulary& vocabulary,
                                         const PreTokenizer& pre) {
  ASSIGN_OR_RETURN(const bool prefix_space,
                   metadata.Boolean("tokenizer.ggml.add_space_prefix", false));
  Json steps = Json::array();
  for (const char* expression : pre.expressions) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", expression}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(ByteLevelJson(prefix_space));
  ASSIGN_OR_RETURN(Json merges, MergesJson(metadata));
  Json model = BpeJson(vocabulary, std::move(merges));
  model["ignore_merges"] = pre.ignore_merges;
  OrderedJson json;
  json["normalizer"] = pre.normalize ? Json{{"type", "NFC"}} : Json();
  json["pre_tokenizer"] = SequenceJson("pretokenizers", std::move(steps));
  json["decoder"] = ByteLevelJson(prefix_space);
  json["model"] = std::move(model);
  return json;
}

// The same of a SentencePiece BPE tokenizer: spaces become U+2581, unknown characters their bytes.
absl::StatusOr<OrderedJson> SentencePieceBpe(const GgufMetadata& metadata,
                                             const Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const bool prefix_space,
                   metadata.Boolean("tokenizer.ggml.add_space_prefix", true));
  ASSIGN_OR_RETURN(const std::vector<float> scores, metadata.Floats(kScoresKey));
  if (scores.size() != vocabulary.tokens.size()) {
    return Invalid(kScoresKey,
                   absl::StrCat("must have one value for each of the ", vocabulary.tokens.size(),
                                " tokens, has ", scores.size()));
  }
  std::vector<ScoredPiece> pieces;
  for (size_t id = 0; id < scores.size(); ++id) {
    if (!std::isfinite(scores[id])) {
      return Invalid(kScoresKey, absl::StrCat("[", id, "] must be finite"));
    }
    pieces.push_back(
        {.text = vocabulary.tokens[id],
         .score = scores[id],
         .mergeable = !vocabulary.IsFiller(id) &&
                      (vocabulary.types[id] == kNormal || vocabulary.types[id] == kUserDefined)});
  }
  Json merges = Json::array();
  for (const auto& [left, right] : MergesOfPieces(pieces)) {
    merges.push_back({std::string(left), std::string(right)});
  }
  Json model = BpeJson(vocabulary, std::move(merges));
  model["fuse_unk"] = true;
  model["byte_fallback"] = true;
  ASSIGN_OR_RETURN(const auto unknown,
                   SpecialToken(metadata, "tokenizer.ggml.unknown_token_id", vocabulary));
  model["unk_token"] = std::string(vocabulary.tokens[static_cast<size_t>(unknown.value_or(0))]);

  Json normalizers = Json::array();
  Json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}};
  if (prefix_space) {
    normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  OrderedJson json;
  json["normalizer"] = SequenceJson("normalizers", std::move(normalizers));
  json["pre_tokenizer"] = nullptr;
  json["decoder"] = SequenceJson("decoders", std::move(decoders));
  json["model"] = std::move(model);
  return json;
}

}  // namespace

absl::StatusOr<TokenizerFiles> TokenizerFilesFromGguf(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const absl::string_view model, metadata.String(kModelKey, {}));
  ASSIGN_OR_RETURN(const absl::string_view pre_name, metadata.String(kPreKey, "default"));
  const bool byte_level = model == "gpt2";
  if (!byte_level && model != "llama") {
    return Invalid(kModelKey, absl::StrCat("is not supported: ", QuotedForMessage(model),
                                           "; supported: gpt2, llama"));
  }
  const PreTokenizer* const pre = FindPreTokenizer(pre_name);
  if (byte_level && pre == nullptr) {
    return Invalid(kPreKey, absl::StrCat("is not supported: ", QuotedForMessage(pre_name),
                                         "; supported: ", SupportedPreTokenizers()));
  }
  ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(metadata));
  OrderedJson parts;
  if (byte_level) {
    ASSIGN_OR_RETURN(parts, ByteLevelBpe(metadata, vocabulary, *pre));
  } else {
    ASSIGN_OR_RETURN(parts, SentencePieceBpe(metadata, vocabulary));
  }

  // llama.cpp's defaults where the file says nothing.
  ASSIGN_OR_RETURN(const bool add_bos, metadata.Boolean("tokenizer.ggml.add_bos_token",
                                                        byte_level ? pre->add_bos : true));
  ASSIGN_OR_RETURN(const bool add_eos, metadata.Boolean("tokenizer.ggml.add_eos_token", false));
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"add_bos_token", add_bos},
                 {"add_eos_token", add_eos},
                 {"clean_up_tokenization_spaces", false}};
  Surroundings around;
  for (const auto& [name, key] : {std::pair("bos_token", "tokenizer.ggml.bos_token_id"),
                                  std::pair("eos_token", "tokenizer.ggml.eos_token_id"),
                                  std::pair("unk_token", "tokenizer.ggml.unknown_token_id"),
                                  std::pair("pad_token", "tokenizer.ggml.padding_token_id")}) {
    ASSIGN_OR_RETURN(const std::optional<int64_t> id, SpecialToken(metadata, key, vocabulary));
    if (!id) continue;
    config[name] = std::string(vocabulary.tokens[static_cast<size_t>(*id)]);
    if (absl::string_view(name) == "bos_token" && add_bos) around.bos = id;
    if (absl::string_view(name) == "eos_token" && add_eos) around.eos = id;
  }
  if (add_bos && !around.bos) {
    return Invalid("tokenizer.ggml.bos_token_id", "is missing, but the token is to be added");
  }
  if (add_eos && !around.eos) {
    return Invalid("tokenizer.ggml.eos_token_id", "is missing, but the token is to be added");
  }
  if (metadata.Has("tokenizer.chat_template")) {
    ASSIGN_OR_RETURN(const absl::string_view chat, metadata.String("tokenizer.chat_template", {}));
    config["chat_template"] = std::string(chat);
  }

  OrderedJson tokenizer;
  tokenizer["version"] = "1.0";
  tokenizer["truncation"] = nullptr;
  tokenizer["padding"] = nullptr;
  tokenizer["added_tokens"] = AddedTokensJson(vocabulary);
  tokenizer["normalizer"] = std::move(parts["normalizer"]);
  tokenizer["pre_tokenizer"] = std::move(parts["pre_tokenizer"]);
  tokenizer["post_processor"] = PostProcessorJson(around, vocabulary);
  tokenizer["decoder"] = std::move(parts["decoder"]);
  tokenizer["model"] = std::move(parts["model"]);
  return TokenizerFiles{{"tokenizer.json", tokenizer.dump()},
                        {"tokenizer_config.json", config.dump(2)}};
}

}  // namespace qpruner::engine
