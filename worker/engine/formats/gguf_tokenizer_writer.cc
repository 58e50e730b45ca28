#include "worker/engine/formats/gguf_tokenizer_writer.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/gguf_pre_tokenizer.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581, SentencePiece's.
// llama.cpp's token types.
constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

absl::Status Cannot(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("GGUF cannot hold this tokenizer: ", what));
}

// A member, or null. `object` may be null itself, and must outlive the result.
const Json& Member(const Json& object, const char* name) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}
std::string Text(const Json& object, const char* name) {
  const Json& value = Member(object, name);
  return value.is_string() ? value.get<std::string>() : "";
}
bool Flag(const Json& object, const char* name, bool absent = false) {
  const Json& value = Member(object, name);
  return value.is_boolean() ? value.get<bool>() : absent;
}

// The parts of a "Sequence", or the one part that there is.
std::vector<Json> Parts(const Json& step, const char* member) {
  if (step.is_null()) return {};
  if (Text(step, "type") != "Sequence") return {step};
  const Json& parts = Member(step, member);
  return parts.is_array() ? parts.get<std::vector<Json>>() : std::vector<Json>{};
}

// A token's content, plain or as {"content": ..}.
std::string Content(const Json& token) {
  return token.is_string() ? token.get<std::string>() : Text(token, "content");
}

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  absl::flat_hash_map<std::string, int64_t> ids;
};

absl::StatusOr<Vocabulary> ReadVocabulary(const Json& tokenizer, int64_t vocab_size) {
  Vocabulary vocabulary;
  vocabulary.tokens.resize(static_cast<size_t>(vocab_size));
  vocabulary.types.assign(static_cast<size_t>(vocab_size), kUnused);
  vocabulary.ids.reserve(static_cast<size_t>(vocab_size));
  const auto add = [&](const std::string& token, const Json& id, int32_t type) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      return Cannot(
          absl::StrCat("token ", QuotedForMessage(token), " has no id below ", vocab_size));
    }
    const auto at = id.get<size_t>();
    if (token.empty()) return Cannot(absl::StrCat("token ", at, " is empty"));
    if (vocabulary.types[at] != kUnused && vocabulary.tokens[at] != token) {
      return Cannot(absl::StrCat("id ", at, " is given twice"));
    }
    vocabulary.tokens[at] = token;
    vocabulary.types[at] = type;
    vocabulary.ids[token] = static_cast<int64_t>(at);
    return absl::OkStatus();
  };
  const Json& model = Member(tokenizer, "model");
  const Json& listed = Member(model, "vocab");
  if (!listed.is_object()) return Cannot("model.vocab is no object");
  const bool byte_fallback = Flag(model, "byte_fallback");
  for (const auto& [token, id] : listed.items()) {
    const bool byte = byte_fallback && token.size() == 6 && absl::StartsWith(token, "<0x");
    RETURN_IF_ERROR(add(token, id, byte ? kByte : kNormal));
  }
  const Json& added = Member(tokenizer, "added_tokens");
  const std::string unknown = Text(model, "unk_token");
  static const Json none = Json::array();
  for (const Json& token : added.is_array() ? added : none) {
    const std::string content = Text(token, "content");
    const int32_t type = byte_fallback && content == unknown ? kUnknown
                         : Flag(token, "special")            ? kControl
                                                             : kUserDefined;
    RETURN_IF_ERROR(add(content, Member(token, "id"), type));
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    // The name that llama.cpp's converter gives.
    if (vocabulary.types[id] == kUnused) vocabulary.tokens[id] = absl::StrCat("[PAD", id, "]");
  }
  return vocabulary;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const Json& model) {
  std::vector<std::pair<std::string, std::string>> result;
  const Json& merges = Member(model, "merges");
  if (!merges.is_array()) return Cannot("model.merges is no array");
  for (const Json& merge : merges) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      result.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ', 1);
      if (space == std::string::npos) return Cannot("a merge has one part only");
      result.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else {
      return Cannot("a merge is neither a string nor a pair of them");
    }
  }
  return result;
}

// The pre-tokenizer family whose steps `tokenizer` takes; nullptr if it is none.
const PreTokenizer* FamilyOf(const Json& tokenizer) {
  std::vector<std::string> expressions;
  const std::vector<Json> steps = Parts(Member(tokenizer, "pre_tokenizer"), "pretokenizers");
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string type = Text(steps[i], "type");
    const bool last = i + 1 == steps.size();
    if (type == "Split" && !last && Text(steps[i], "behavior") == "Isolated" &&
        !Flag(steps[i], "invert")) {
      expressions.push_back(Text(Member(steps[i], "pattern"), "Regex"));
    } else if (type == "Digits" && !last && Flag(steps[i], "individual_digits")) {
      expressions.push_back(kDigitExpression);
    } else if (type == "ByteLevel" && last && !Flag(steps[i], "add_prefix_space", true)) {
      if (Flag(steps[i], "use_regex", true)) expressions.push_back(kGpt2Expression);
    } else {
      return nullptr;
    }
  }
  const std::vector<Json> normalizers = Parts(Member(tokenizer, "normalizer"), "normalizers");
  if (normalizers.size() > 1 ||
      (normalizers.size() == 1 && Text(normalizers[0], "type") != "NFC")) {
    return nullptr;
  }
  return FindPreTokenizer(expressions, !normalizers.empty(),
                          Flag(Member(tokenizer, "model"), "ignore_merges"));
}

// True if spaces become U+2581. `prefix` is set to whether one is put before a text.
bool IsSentencePiece(const Json& tokenizer, bool& prefix) {
  if (!Flag(Member(tokenizer, "model"), "byte_fallback")) return false;
  bool replaces = false;
  prefix = false;
  for (const Json& step : Parts(Member(tokenizer, "normalizer"), "normalizers")) {
    const std::string type = Text(step, "type");
    if (type == "Prepend" && Text(step, "prepend") == kSpace) {
      prefix = true;
    } else if (type == "Replace" && Text(Member(step, "pattern"), "String") == " " &&
               Text(step, "content") == kSpace) {
      replaces = true;
    } else {
      return false;
    }
  }
  const std::vector<Json> steps = Parts(Member(tokenizer, "pre_tokenizer"), "pretokenizers");
  if (steps.empty()) return replaces;
  if (steps.size() > 1 || replaces || Text(steps[0], "type") != "Metaspace" ||
      Text(steps[0], "replacement") != kSpace || Flag(steps[0], "split", true)) {
    return false;
  }
  prefix = Text(steps[0], "prepend_scheme") != "never";
  return true;
}

// Whether the post-processor puts `token` at the front of a text, or at its back.
enum class End { kFront, kBack };
bool TemplateHas(const Json& tokenizer, End end, const std::string& token) {
  for (const Json& step : Parts(Member(tokenizer, "post_processor"), "processors")) {
    if (Text(step, "type") != "TemplateProcessing") continue;
    const Json& single = Member(step, "single");
    if (!single.is_array() || single.empty()) continue;
    const Json& piece = end == End::kFront ? single.front() : single.back();
    if (Text(Member(piece, "SpecialToken"), "id") == token) return true;
  }
  return false;
}

// The keys of the special tokens, each with whether it is put around a text. They are looked for
// where llama.cpp's converter does: by name in tokenizer_config.json and special_tokens_map.json,
// then by id in the model's config.json (the first, where it has several).
void AddSpecialTokens(const Json& tokenizer, const Json& config, const Json& map,
                      const Json& model_config, const Vocabulary& vocabulary,
                      GgufMetadataToWrite& metadata) {
  const auto id_of = [&](const std::string& name) -> std::optional<size_t> {
    for (const Json* const file : {&config, &map}) {
      const auto found = vocabulary.ids.find(Content(Member(*file, name.c_str())));
      if (found != vocabulary.ids.end()) return static_cast<size_t>(found->second);
    }
    const Json& listed = Member(model_config, absl::StrCat(name, "_id").c_str());
    const Json& id = listed.is_array() && !listed.empty() ? listed.front() : listed;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= vocabulary.tokens.size()) {
      return std::nullopt;
    }
    return id.get<size_t>();
  };
  std::optional<std::string> bos, eos;
  for (const auto& [name, key] : {std::pair("bos_token", "tokenizer.ggml.bos_token_id"),
                                  std::pair("eos_token", "tokenizer.ggml.eos_token_id"),
                                  std::pair("unk_token", "tokenizer.ggml.unknown_token_id"),
                                  std::pair("pad_token", "tokenizer.ggml.padding_token_id")}) {
    const std::optional<size_t> id = id_of(name);
    if (!id) continue;
    metadata.AddUint32(key, static_cast<uint32_t>(*id));
    if (absl::string_view(name) == "bos_token") bos = vocabulary.tokens[*id];
    if (absl::string_view(name) == "eos_token") eos = vocabulary.tokens[*id];
  }
  // As tokenizer.h says.
  const bool llama = absl::StartsWith(Text(config, "tokenizer_class"), "LlamaTokenizer");
  metadata.AddBool(
      "tokenizer.ggml.add_bos_token",
      bos && (TemplateHas(tokenizer, End::kFront, *bos) || Flag(config, "add_bos_token", llama)));
  metadata.AddBool(
      "tokenizer.ggml.add_eos_token",
      eos && (TemplateHas(tokenizer, End::kBack, *eos) || Flag(config, "add_eos_token")));
}

// A file of the tokenizer, or an empty object where there is none.
absl::StatusOr<Json> ReadOptional(const TokenizerFiles& files, const char* name) {
  const auto text = files.find(name);
  if (text == files.end()) return Json::object();
  return ParseStrictJsonObject(text->second);
}

}  // namespace

absl::StatusOr<GgufMetadataToWrite> GgufMetadataOfTokenizer(const TokenizerFiles& files,
                                                            int64_t vocab_size,
                                                            const Json& model_config) {
  ASSIGN_OR_RETURN(const Json tokenizer, ParseStrictJsonObject(files.at("tokenizer.json")));
  ASSIGN_OR_RETURN(const Json config, ReadOptional(files, "tokenizer_config.json"));
  ASSIGN_OR_RETURN(const Json map, ReadOptional(files, "special_tokens_map.json"));
  const Json& model = Member(tokenizer, "model");
  if (Text(model, "type") != "BPE") {
    return Cannot(
        absl::StrCat("its model is ", QuotedForMessage(Text(model, "type")), ", not BPE"));
  }
  ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(tokenizer, vocab_size));
  ASSIGN_OR_RETURN(const auto merges, ReadMerges(model));

  GgufMetadataToWrite metadata;
  bool prefix_space = false;
  if (IsSentencePiece(tokenizer, prefix_space)) {
    metadata.AddString("tokenizer.ggml.model", "llama");
    metadata.AddString("tokenizer.ggml.pre", "default");
    // Pieces that no merge makes are single characters, or met as they are.
    std::vector<float> scores(vocabulary.tokens.size(), 0.0f);
    std::vector<bool> scored(scores.size(), false);
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const auto made = vocabulary.ids.find(merges[rank].first + merges[rank].second);
      if (made == vocabulary.ids.end()) return Cannot("a merge makes no token");
      const auto id = static_cast<size_t>(made->second);
      if (scored[id]) continue;
      scored[id] = true;
      // float32 counts to 2^24.
      scores[id] = -static_cast<float>(rank) - 1;
    }
    metadata.AddStrings("tokenizer.ggml.tokens", vocabulary.tokens);
    metadata.AddFloat32s("tokenizer.ggml.scores", scores);
    metadata.AddInt32s("tokenizer.ggml.token_type", vocabulary.types);
    metadata.AddBool("tokenizer.ggml.add_space_prefix", prefix_space);
  } else {
    const PreTokenizer* const family = FamilyOf(tokenizer);
    if (family == nullptr) {
      return Cannot(
          absl::StrCat("its normalizer and pre-tokenizer are none of those that have a "
                       "name in GGUF and are known here: ",
                       SupportedPreTokenizers()));
    }
    metadata.AddString("tokenizer.ggml.model", "gpt2");
    metadata.AddString("tokenizer.ggml.pre", family->name);
    std::vector<std::string> joined;
    for (const auto& [left, right] : merges) joined.push_back(absl::StrCat(left, " ", right));
    metadata.AddStrings("tokenizer.ggml.tokens", vocabulary.tokens);
    metadata.AddInt32s("tokenizer.ggml.token_type", vocabulary.types);
    metadata.AddStrings("tokenizer.ggml.merges", joined);
  }

  AddSpecialTokens(tokenizer, config, map, model_config, vocabulary, metadata);
  std::string chat = Text(config, "chat_template");
  if (const auto file = files.find("chat_template.jinja"); file != files.end()) chat = file->second;
  if (!chat.empty()) metadata.AddString("tokenizer.chat_template", chat);
  return metadata;
}

}  // namespace qpruner::engine
