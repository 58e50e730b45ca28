// How the byte-level BPE tokenizers of GGUF files cut a text into words, by the name in
// tokenizer.ggml.pre.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_PRE_TOKENIZER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_PRE_TOKENIZER_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace qpruner::engine {

// Each expression cuts the pieces that the ones before left: its matches and what lies between
// them. These are the expressions of the models' own tokenizer.json files; what llama.cpp uses for
// the same name is equivalent (tests/compat/gguf_tokenizer_check.py).
struct PreTokenizer {
  const char* name;
  std::vector<const char*> expressions;
  // The text is brought to Unicode form NFC first.
  bool normalize = false;
  // A word that is a token as a whole is not taken apart.
  bool ignore_merges = false;
  // llama.cpp's default for tokenizer.ggml.add_bos_token.
  bool add_bos = false;
};

// The step of GPT-2, which Hugging Face's ByteLevel takes by itself, and that of single digits.
extern const char kGpt2Expression[];
extern const char kDigitExpression[];

// The one with these expressions and ways; nullptr: none has them.
const PreTokenizer* FindPreTokenizer(const std::vector<std::string>& expressions, bool normalize,
                                     bool ignore_merges);
// nullptr: no such name. A file without a name has "default".
const PreTokenizer* FindPreTokenizer(absl::string_view name);
// "default, gpt-2, ..": all of them, for messages.
std::string SupportedPreTokenizers();

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_PRE_TOKENIZER_H_
