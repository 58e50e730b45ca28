// Which files of a foreign place belong to a Hugging Face model.
#ifndef QPRUNER_BASE_MODEL_FILE_H_
#define QPRUNER_BASE_MODEL_FILE_H_

#include "absl/strings/string_view.h"

namespace qpruner {

// model.safetensors, or one of its shards.
bool IsModelWeights(absl::string_view name);

// True for weights, JSON (configuration, tokenizer, index) and tokenizer files, at the top of the
// place. Nothing that could run: no code, no pickles.
bool IsModelFile(absl::string_view name);

}  // namespace qpruner

#endif  // QPRUNER_BASE_MODEL_FILE_H_
