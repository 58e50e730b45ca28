// Where LibTorch's exceptions end and statuses begin.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_TORCH_GUARD_H_
#define QPRUNER_WORKER_ENGINE_TASKS_TORCH_GUARD_H_

#include <exception>
#include <functional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

// Runs `work` and returns its status, INTERNAL instead of a RESOURCE_EXHAUSTED that is not
// OutOfMemoryError's; an exception becomes StatusOfException's. `what` starts its message.
absl::Status GuardTorch(absl::string_view what, const std::function<absl::Status()>& work);

// RESOURCE_EXHAUSTED, with the reason kOutOfMemory (proto/engine_errors.h).
absl::Status OutOfMemoryError(absl::string_view message);

// What an exception means for the task and the process. A pure function of type and text.
// OutOfMemoryError: memory of the device or the host ran out, whoever asked for it. INTERNAL with
// the reason kDeviceLost: a CUDA call failed otherwise. Such errors are told by all later calls of
// the process, too, so it must end. INTERNAL: any other exception.
absl::Status StatusOfException(absl::string_view what, const std::exception& error);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_TORCH_GUARD_H_
