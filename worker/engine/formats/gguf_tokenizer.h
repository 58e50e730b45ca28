// The tokenizer in a GGUF file's metadata as a Hugging Face tokenizer description, so that one
// implementation serves every model.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_TOKENIZER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_TOKENIZER_H_

#include <string>

#include "absl/status/statusor.h"
#include "worker/engine/formats/gguf_metadata.h"
#include "worker/engine/formats/tokenizer_files.h"

namespace qpruner::engine {

// tokenizer.json and tokenizer_config.json.
//
// tokenizer.ggml.model "gpt2": byte-level BPE with the pre-tokenizer that tokenizer.ggml.pre names.
// "llama": SentencePiece BPE; its merges are derived from the scores as transformers does
// (generate_merges). Control tokens become special tokens, user-defined ones are matched in text
// too. INVALID_ARGUMENT names the key and the rule, or the model or pre-tokenizer that is not known
// and those that are.
absl::StatusOr<TokenizerFiles> TokenizerFilesFromGguf(const GgufMetadata& metadata);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_TOKENIZER_H_
