// A Hugging Face tokenizer description as GGUF metadata: the way back of gguf_tokenizer.h.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_TOKENIZER_WRITER_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_TOKENIZER_WRITER_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/gguf_writer.h"
#include "worker/engine/formats/tokenizer_files.h"

namespace qpruner::engine {

// The tokenizer.* keys for `files`. `vocab_size` is the model's; ids without a token get fillers.
// `model_config`, of config.json, has the ids of special tokens that no file of the tokenizer
// names.
//
// A byte-level BPE becomes model "gpt2" if its normalizer and pre-tokenizer are those of a family
// that llama.cpp knows by name (gguf_pre_tokenizer.h); a BPE with byte fallback over U+2581 becomes
// "llama", each piece scored by the rank of the merge that makes it first, so that the order of
// merges is kept. INVALID_ARGUMENT names what GGUF cannot express.
absl::StatusOr<GgufMetadataToWrite> GgufMetadataOfTokenizer(const TokenizerFiles& files,
                                                            int64_t vocab_size,
                                                            const nlohmann::json& model_config);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_TOKENIZER_WRITER_H_
