// What a task takes: time, and the peaks of host and device memory.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_TASK_USE_H_
#define QPRUNER_WORKER_ENGINE_TASKS_TASK_USE_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "qpruner/v1/job.pb.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// Measures from construction on. The host's peak is that of the whole process (VmHWM, set back at
// the start where the kernel allows it, else since the process began); the device's is that of
// LibTorch's allocator, which is set back too. One at a time in a process.
class UseMeter {
 public:
  UseMeter(at::Device device, Clock& clock);

  // Without the task's name.
  v1::TaskUse Read() const;

 private:
  const at::Device device_;
  Clock& clock_;
  const absl::Duration start_;
};

// What `measure` gives of a model over `batches`, with the time it took.
TokenMetrics Timed(Clock& clock, const std::vector<TokenBatch>& batches,
                   const std::function<TokenMetrics()>& measure);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_TASK_USE_H_
