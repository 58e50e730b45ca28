// The parts of a Hugging Face model folder that every export writes alike.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_MODEL_FOLDER_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_MODEL_FOLDER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace qpruner::engine {

// Writes `folder`/config.json.
absl::Status WriteModelConfig(const std::string& folder, const nlohmann::json& config);

// Writes the tokenizer of a model folder or .gguf file (formats/tokenizer_files.h) into `folder`.
// An empty `from` writes nothing. Returns the names.
absl::StatusOr<std::vector<std::string>> WriteTokenizerFiles(const std::string& from,
                                                             const std::string& folder);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_MODEL_FOLDER_H_
