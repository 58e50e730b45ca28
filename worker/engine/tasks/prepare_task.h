// PREPARE: from the client's model to a search space.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_PREPARE_TASK_H_
#define QPRUNER_WORKER_ENGINE_TASKS_PREPARE_TASK_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

// Opens and checks model, tokenizer and texts; measures the original; prunes; measures the pruned
// model and scores its groups. Writes into `output_dir`:
//
//   prepared/           the pruned model as a Hugging Face folder, in the original's dtype, and
//                       reference.safetensors (reference_file.h): no later task reads the original,
//                       unless fine-tuning is to learn from it
//   prepared/tasks/     the questions of Evaluation.tasks
//   prepared/weights/   with GPTQ: every linear in every candidate format (weight_database.h)
//   report/scores.json  everything that was scored, for people
//   report/tasks.*      what the original and the pruned model make of the questions
//
// Goes on from what an earlier attempt has left in `input_dir` (prepare_checkpoint.h), to the same
// result but for what was measured in time; leaves the same for a later one, after each stage and
// each block of the two long ones.
//
// Everything that can be known from configuration, tokenizer and texts is refused before the first
// forward pass, also what only holds of the pruned model (budget, exports), unless scores decide
// its shape: then right after pruning. `input_dir` may hold the model (ResolveModel).
// INVALID_ARGUMENT, NOT_FOUND: what is wrong with the model, the texts or the spec.
// FAILED_PRECONDITION: as CheckBudget.
absl::StatusOr<internal::v1::PrepareResult> RunPrepare(
    const v1::CompressionSpec& spec, const std::string& input_dir, const std::string& builtin_dir,
    const std::string& output_dir, at::Device device, Clock& clock, ProgressReporter& progress);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_PREPARE_TASK_H_
