// Where LibTorch's exceptions end and statuses begin.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_TORCH_GUARD_H_
#define QPRUNER_WORKER_ENGINE_TASKS_TORCH_GUARD_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

// Runs `work` and returns its status; an exception becomes one. `what` starts its message.
// RESOURCE_EXHAUSTED: memory of the device or the host ran out. INTERNAL: any other exception.
absl::Status GuardTorch(absl::string_view what, const std::function<absl::Status()>& work);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_TORCH_GUARD_H_
