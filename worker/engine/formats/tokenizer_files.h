// A model's tokenizer as the files of a Hugging Face folder, wherever the model comes from.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_TOKENIZER_FILES_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_TOKENIZER_FILES_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace qpruner::engine {

// Name -> content: "tokenizer.json", "tokenizer_config.json", .. Always has tokenizer.json.
using TokenizerFiles = std::map<std::string, std::string>;

// Those of a model folder (only what a tokenizer may consist of: a folder can hold anything), or of
// a .gguf file, rebuilt from its metadata. NOT_FOUND: the folder has no tokenizer.json.
// INVALID_ARGUMENT names the file or key and the rule.
absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::string& model_path);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_TOKENIZER_FILES_H_
