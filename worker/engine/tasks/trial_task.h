// TRIAL: one assignment of precisions, measured.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_TRIAL_TASK_H_
#define QPRUNER_WORKER_ENGINE_TASKS_TRIAL_TASK_H_

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

// Quantizes `model` as the trial says and measures it on the selection share, and on the test share
// if asked. INVALID_ARGUMENT: the assignment does not fit the model.
absl::StatusOr<internal::v1::TrialResult> RunTrial(const v1::CompressionSpec& spec,
                                                   const internal::v1::TrialTask& trial,
                                                   const PreparedModel& model, Clock& clock,
                                                   ProgressReporter& progress);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_TRIAL_TASK_H_
