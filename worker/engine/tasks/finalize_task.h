// FINALIZE: the chosen assignment quantized for good, fine-tuned, measured and exported.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_FINALIZE_TASK_H_
#define QPRUNER_WORKER_ENGINE_TASKS_FINALIZE_TASK_H_

#include <string>

#include "absl/status/statusor.h"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

// Writes into `output_dir`:
//
//   model/      a Hugging Face folder: the dequantized base with the adapter merged, in the
//   export's
//               dtype, with a README.md. Its weights as written are what the result measures.
//   quantized/  the base in its packed bytes, with metadata
//   adapter/    the adapter in PEFT's layout; only with fine-tuning
//
// The original model is read again (`builtin_dir`: what builtin:// means) only to learn from it.
// INVALID_ARGUMENT: the assignment does not fit the model, or fine-tuning's settings are bad.
absl::StatusOr<internal::v1::FinalizeResult> RunFinalize(
    const v1::CompressionSpec& spec, const internal::v1::FinalizeTask& task,
    const PreparedModel& model, const std::string& input_dir, const std::string& builtin_dir,
    const std::string& output_dir, ProgressReporter& progress);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_FINALIZE_TASK_H_
