#include "worker/engine/tokenizer/tokenizer.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/strict_json.h"
#include "worker/engine/formats/tokenizer_files.h"
#include "worker/engine/tokenizer/tokenizers_c.h"

namespace qpruner::engine {
namespace {

absl::Status TakeError(qpruner_tokenizers_bytes error) {
  std::string message(reinterpret_cast<const char*>(error.data), error.size);
  qpruner_tokenizers_free_bytes(error);
  return absl::InvalidArgumentError(message);
}

TokenIds TakeIds(qpruner_tokenizers_ids ids) {
  TokenIds result(ids.data, ids.data + ids.size);
  qpruner_tokenizers_free_ids(ids);
  return result;
}

class HuggingFaceTokenizer : public Tokenizer {
 public:
  explicit HuggingFaceTokenizer(qpruner_tokenizers* handle) : handle_(handle) {}
  ~HuggingFaceTokenizer() override { qpruner_tokenizers_close(handle_); }
  HuggingFaceTokenizer(const HuggingFaceTokenizer&) = delete;
  HuggingFaceTokenizer& operator=(const HuggingFaceTokenizer&) = delete;

  absl::Status Initialize(const TokenizerFiles& files, int64_t vocab_size) {
    int64_t max_id = -1;
    qpruner_tokenizers_bytes error{};
    if (!qpruner_tokenizers_max_id(handle_, &max_id, &error)) return TakeError(error);
    if (max_id < 0) return absl::InvalidArgumentError("it has no tokens");
    if (max_id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("it does not fit the model: it can give id ",
                                                     max_id, ", but the model's vocab_size is ",
                                                     vocab_size, ", so ids must be below that"));
    }
    vocab_size_ = max_id + 1;
    return FindBos(files);
  }

  absl::StatusOr<TokenIds> Encode(absl::string_view text) const override {
    return Encode(text, /*add_special_tokens=*/false);
  }

  absl::StatusOr<std::string> Decode(const TokenIds& ids) const override {
    for (int32_t id : ids) {
      if (id < 0) return absl::InvalidArgumentError(absl::StrCat("Token id below 0: ", id));
    }
    qpruner_tokenizers_bytes text{};
    qpruner_tokenizers_bytes error{};
    if (!qpruner_tokenizers_decode(handle_, reinterpret_cast<const uint32_t*>(ids.data()),
                                   ids.size(), /*skip_special_tokens=*/true, &text, &error)) {
      return TakeError(error);
    }
    std::string result(reinterpret_cast<const char*>(text.data), text.size);
    qpruner_tokenizers_free_bytes(text);
    return result;
  }

  std::optional<int32_t> TokenToId(absl::string_view token) const override {
    int64_t id = -1;
    qpruner_tokenizers_bytes error{};
    if (!qpruner_tokenizers_token_to_id(handle_, token.data(), token.size(), &id, &error)) {
      (void)TakeError(error);
      return std::nullopt;
    }
    return id < 0 ? std::nullopt : std::optional<int32_t>(static_cast<int32_t>(id));
  }

  int64_t vocab_size() const override { return vocab_size_; }

 private:
  absl::StatusOr<TokenIds> Encode(absl::string_view text, bool add_special_tokens) const {
    qpruner_tokenizers_ids ids{};
    qpruner_tokenizers_bytes error{};
    if (!qpruner_tokenizers_encode(handle_, text.data(), text.size(), add_special_tokens, &ids,
                                   &error)) {
      return TakeError(error);
    }
    return TakeIds(ids);
  }

  absl::Status FindBos(const TokenizerFiles& files) {
    ASSIGN_OR_RETURN(const TokenIds plain, Encode("a", false));
    ASSIGN_OR_RETURN(const TokenIds special, Encode("a", true));
    if (special.size() > plain.size() && (plain.empty() || special.front() != plain.front())) {
      bos_ = special.front();
      return absl::OkStatus();
    }
    const auto text = files.find("tokenizer_config.json");
    if (text == files.end()) return absl::OkStatus();
    auto config = ParseStrictJsonObject(text->second);
    if (!config.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("its tokenizer_config.json: ", config.status().message()));
    }
    const auto add = config->find("add_bos_token");
    bool wanted = add != config->end() && add->is_boolean() && add->get<bool>();
    if (add == config->end()) {
      const auto name = config->find("tokenizer_class");
      wanted = name != config->end() && name->is_string() &&
               absl::StartsWith(name->get_ref<const std::string&>(), "LlamaTokenizer");
    }
    if (!wanted) return absl::OkStatus();
    nlohmann::json token = config->value("bos_token", nlohmann::json());
    // The long spelling: {"content": "<s>", "lstrip": false, ...}.
    if (token.is_object()) token = token.value("content", nlohmann::json());
    if (!token.is_string()) return absl::OkStatus();
    const auto& content = token.get_ref<const std::string&>();
    bos_ = TokenToId(content);
    if (!bos_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "bos_token of tokenizer_config.json is none of its tokens: ", QuotedForMessage(content)));
    }
    return absl::OkStatus();
  }

  qpruner_tokenizers* const handle_;
  int64_t vocab_size_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Open(const std::string& model_path,
                                                           int64_t vocab_size) {
  ASSIGN_OR_RETURN(const TokenizerFiles files, ReadTokenizerFiles(model_path));
  const std::string& json = files.at("tokenizer.json");
  const auto invalid = [&](absl::string_view rule) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a usable tokenizer: that of ", model_path, ": ", rule));
  };
  qpruner_tokenizers* handle = nullptr;
  qpruner_tokenizers_bytes error{};
  if (!qpruner_tokenizers_open(json.data(), json.size(), &handle, &error)) {
    return invalid(TakeError(error).message());
  }
  auto tokenizer = std::make_unique<HuggingFaceTokenizer>(handle);
  if (absl::Status status = tokenizer->Initialize(files, vocab_size); !status.ok()) {
    return invalid(status.message());
  }
  return tokenizer;
}

absl::StatusOr<TokenIds> Tokenizer::EncodeDocument(absl::string_view text) const {
  ASSIGN_OR_RETURN(TokenIds ids, Encode(text));
  if (bos_) ids.insert(ids.begin(), *bos_);
  return ids;
}

}  // namespace qpruner::engine
