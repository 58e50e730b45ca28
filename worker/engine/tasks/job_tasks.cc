#include "worker/engine/tasks/job_tasks.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/evaluate/choice_file.h"
#include "worker/engine/tasks/source_uri.h"

namespace qpruner::engine {
namespace {

std::string KeptPath(const std::string& folder, const std::string& task) {
  return absl::StrCat(folder, "/tasks/", task, ".jsonl");
}

absl::Status About(int task, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("evaluation.tasks[", task,
                                                  "]: ", absl::string_view(status.message())));
}

absl::StatusOr<ChoiceTask> ReadTask(const v1::EvaluationTask& task, const std::string& path,
                                    const ChoiceFileOptions& options, const Tokenizer& tokenizer,
                                    int64_t max_length) {
  ASSIGN_OR_RETURN(std::vector<ChoiceItem> items, ReadChoiceFile(path, options));
  auto made = MakeChoiceTask(task.name(), std::move(items), tokenizer, max_length);
  if (made.ok()) return made;
  return absl::Status(made.status().code(),
                      absl::StrCat(path, ": ", absl::string_view(made.status().message())));
}

void Set(const Accuracy& accuracy, v1::TaskScore::Accuracy& out) {
  out.set_mean(accuracy.mean);
  out.set_standard_error(accuracy.standard_error);
}

void AppendItems(const std::string& task, const ChoiceScores& scores, std::string& lines) {
  for (size_t i = 0; i < scores.items.size(); ++i) {
    const ItemScore& item = scores.items[i];
    nlohmann::ordered_json line;
    line["task"] = task;
    line["item"] = i;
    for (const Loglikelihood& choice : item.choices) {
      line["log_likelihoods"].push_back(choice.nats);
      line["greedy"].push_back(choice.greedy);
    }
    line["acc"] = item.correct;
    if (scores.has_normalized) {
      line["acc_norm"] = item.correct_by_characters;
      line["acc_bytes"] = item.correct_by_bytes;
    }
    absl::StrAppend(&lines, line.dump(), "\n");
  }
}

}  // namespace

absl::StatusOr<std::vector<ChoiceTask>> ReadJobTasks(const v1::Evaluation& evaluation,
                                                     const Tokenizer& tokenizer,
                                                     int64_t max_length) {
  std::vector<ChoiceTask> tasks;
  for (int i = 0; i < evaluation.tasks_size(); ++i) {
    const v1::EvaluationTask& task = evaluation.tasks(i);
    auto path = ResolveFile(task.uri());
    if (!path.ok()) return About(i, path.status());
    auto read = ReadTask(task, *path, {.limit = task.limit(), .query_suffix = task.query_suffix()},
                         tokenizer, max_length);
    if (!read.ok()) return About(i, read.status());
    tasks.push_back(*std::move(read));
  }
  return tasks;
}

absl::Status KeepJobTasks(const std::string& folder, const std::vector<ChoiceTask>& tasks) {
  if (tasks.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CreateFolders(absl::StrCat(folder, "/tasks")));
  for (const ChoiceTask& task : tasks) {
    RETURN_IF_ERROR(WriteChoiceFile(KeptPath(folder, task.name), task.items));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ChoiceTask>> ReadKeptTasks(const v1::Evaluation& evaluation,
                                                      const std::string& folder,
                                                      const ModelConfig& config) {
  std::vector<ChoiceTask> tasks;
  if (evaluation.tasks().empty()) return tasks;
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(folder, config.vocab_size));
  for (int i = 0; i < evaluation.tasks_size(); ++i) {
    const v1::EvaluationTask& task = evaluation.tasks(i);
    // The query's suffix is in the kept items already.
    auto read = ReadTask(task, KeptPath(folder, task.name()), {}, *tokenizer,
                         config.max_position_embeddings);
    if (!read.ok()) return About(i, read.status());
    tasks.push_back(*std::move(read));
  }
  return tasks;
}

absl::Status ScoreJobTasks(WeightSource& source, const std::vector<ChoiceTask>& tasks,
                           int64_t batch_tokens, const std::string& label,
                           const std::string& output_dir, const Phase& phase,
                           v1::ModelMetrics& metrics) {
  if (tasks.empty()) return absl::OkStatus();
  std::string lines;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const ChoiceScores scores =
        MeasureChoiceTask(source, tasks[i], batch_tokens, [&](double fraction) {
          phase.Done((static_cast<double>(i) + fraction) / static_cast<double>(tasks.size()));
        });
    v1::TaskScore& score = *metrics.add_tasks();
    score.set_name(tasks[i].name);
    score.set_item_count(static_cast<int32_t>(scores.items.size()));
    Set(scores.acc, *score.mutable_acc());
    if (scores.has_normalized) {
      Set(scores.acc_norm, *score.mutable_acc_norm());
      Set(scores.acc_bytes, *score.mutable_acc_bytes());
    }
    AppendItems(tasks[i].name, scores, lines);
  }
  RETURN_IF_ERROR(CreateFolders(absl::StrCat(output_dir, "/report")));
  return WriteFileDurably(absl::StrCat(output_dir, "/report/tasks.", label, ".jsonl"), lines);
}

}  // namespace qpruner::engine
