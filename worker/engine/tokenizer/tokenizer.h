// Text to token ids, by Hugging Face's own tokenizers library.
#ifndef QPRUNER_WORKER_ENGINE_TOKENIZER_TOKENIZER_H_
#define QPRUNER_WORKER_ENGINE_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

// Ids of a text. int32: no vocabulary comes near its end, and texts are long.
using TokenIds = std::vector<int32_t>;

// The tokenizer of a model. Immutable and thread-safe.
class Tokenizer {
 public:
  // Opens that of a model folder (its tokenizer.json) or of a .gguf file (rebuilt from its
  // metadata: formats/gguf_tokenizer.h). Its begin-of-sequence token is what the tokenizer itself
  // puts before a text; if that is nothing, the "bos_token" of tokenizer_config.json where
  // "add_bos_token" is true, or is left out for a Llama tokenizer (whose default it is).
  // `vocab_size` is the model's: INVALID_ARGUMENT if the tokenizer can give an id beyond it, and if
  // the file is not a tokenizer. NOT_FOUND: no tokenizer.json.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Open(const std::string& model_path,
                                                         int64_t vocab_size);
  virtual ~Tokenizer() = default;

  // Ids of `text` alone, without special tokens around it. INVALID_ARGUMENT: not UTF-8.
  virtual absl::StatusOr<TokenIds> Encode(absl::string_view text) const = 0;
  // bos, if there is one, and the text: what a model is shown of a document.
  absl::StatusOr<TokenIds> EncodeDocument(absl::string_view text) const;
  // Text of `ids`; special tokens are left out. INVALID_ARGUMENT: an id below 0.
  virtual absl::StatusOr<std::string> Decode(const TokenIds& ids) const = 0;

  // The id of a token by its exact content.
  virtual std::optional<int32_t> TokenToId(absl::string_view token) const = 0;
  // One more than the largest id.
  virtual int64_t vocab_size() const = 0;
  std::optional<int32_t> bos() const { return bos_; }

 protected:
  std::optional<int32_t> bos_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TOKENIZER_TOKENIZER_H_
