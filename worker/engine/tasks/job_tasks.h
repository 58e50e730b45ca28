// The multiple-choice tasks of a job (Evaluation.tasks): read once by PREPARE, scored by PREPARE
// and FINALIZE.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_JOB_TASKS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_JOB_TASKS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "qpruner/v1/job.pb.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/evaluate/choice_task.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/tasks/progress.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

// INVALID_ARGUMENT, NOT_FOUND: evaluation.tasks[i], the file, the line, the rule.
absl::StatusOr<std::vector<ChoiceTask>> ReadJobTasks(const v1::Evaluation& evaluation,
                                                     const Tokenizer& tokenizer,
                                                     int64_t max_length);

// Keeps the items in `folder`/tasks/NAME.jsonl, so that no later task of the job needs the file.
absl::Status KeepJobTasks(const std::string& folder, const std::vector<ChoiceTask>& tasks);
// Reads them back. `folder` has the model's tokenizer too.
absl::StatusOr<std::vector<ChoiceTask>> ReadKeptTasks(const v1::Evaluation& evaluation,
                                                      const std::string& folder,
                                                      const ModelConfig& config);

// Scores `source` on all tasks, `batch_tokens` tokens at a time, adds the scores to `metrics`, and
// writes what it makes of every item to `output_dir`/report/tasks.LABEL.jsonl (no file without
// tasks), one line an item:
//   {"task", "item" (from 0), "log_likelihoods", "greedy", "acc", "acc_norm", "acc_bytes"}
absl::Status ScoreJobTasks(WeightSource& source, const std::vector<ChoiceTask>& tasks,
                           int64_t batch_tokens, const std::string& label,
                           const std::string& output_dir, const Phase& phase,
                           v1::ModelMetrics& metrics);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_JOB_TASKS_H_
