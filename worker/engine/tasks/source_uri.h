// URIs of models and texts as paths on this machine.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_SOURCE_URI_H_
#define QPRUNER_WORKER_ENGINE_TASKS_SOURCE_URI_H_

#include <string>

#include "absl/status/statusor.h"

namespace qpruner::engine {

// Path of `file:///absolute/folder`, `file:///absolute/model.gguf`, `builtin://NAME`
// (`builtin_dir`/models/NAME), or of what the agent has put into `input_dir`/source for a URI of
// another scheme: that folder, or the .gguf file in it. INVALID_ARGUMENT: not such a URI.
// NOT_FOUND: no such folder or file on this worker.
absl::StatusOr<std::string> ResolveModel(const std::string& uri, const std::string& builtin_dir,
                                         const std::string& input_dir);

// Path of `file:///absolute/path`, `builtin://NAME` (`builtin_dir`/corpus/NAME.txt), or of the
// default text if `uri` is empty. Errors likewise.
absl::StatusOr<std::string> ResolveText(const std::string& uri, const std::string& builtin_dir);

// Path of `file:///absolute/path`. Errors likewise.
absl::StatusOr<std::string> ResolveFile(const std::string& uri);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_SOURCE_URI_H_
