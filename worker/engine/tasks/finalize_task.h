// FINALIZE: the chosen assignment quantized for good, fine-tuned, measured and exported.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_FINALIZE_TASK_H_
#define QPRUNER_WORKER_ENGINE_TASKS_FINALIZE_TASK_H_

#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

// Writes the folders of exports.h into `output_dir`. The result measures the weights as exported
// and, with fine-tuning, what it began with: chosen_test is the trial's assignment, base_test the
// stored base where LoftQ has made another one of it.
//
// The original model is read again (`builtin_dir`: what builtin:// means) only to learn from it.
// INVALID_ARGUMENT: the assignment does not fit the model, or fine-tuning's settings are bad.
absl::StatusOr<internal::v1::FinalizeResult> RunFinalize(
    const v1::CompressionSpec& spec, const internal::v1::FinalizeTask& task,
    const PreparedModel& model, const std::string& input_dir, const std::string& builtin_dir,
    const std::string& output_dir, Clock& clock, ProgressReporter& progress);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_FINALIZE_TASK_H_
