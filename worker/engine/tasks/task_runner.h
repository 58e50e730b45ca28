// Runs the tasks that the agent sends, whatever their kind.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_TASK_RUNNER_H_
#define QPRUNER_WORKER_ENGINE_TASKS_TASK_RUNNER_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "qpruner/internal/v1/engine.pb.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

// A file below the output folder, as the agent is told of it.
absl::StatusOr<internal::v1::ArtifactRef> DescribeOutput(const std::string& output_dir,
                                                         const std::string& path);

// Keeps the prepared model between tasks of one job. Not thread-safe.
class TaskRunner {
 public:
  TaskRunner(at::Device device, Clock& clock) : device_(device), clock_(clock), prepared_(device) {}

  // The result, with what it took and every file that the task left in the request's output folder.
  // Throws nothing. Codes as in CompleteTaskRequest.error.
  absl::StatusOr<internal::v1::TaskResult> Run(const internal::v1::EngineRequest& request,
                                               ProgressReporter& progress);

 private:
  absl::Status Work(const internal::v1::EngineRequest& request, ProgressReporter& progress,
                    internal::v1::TaskResult& result);

  const at::Device device_;
  Clock& clock_;
  PreparedModelCache prepared_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_TASK_RUNNER_H_
