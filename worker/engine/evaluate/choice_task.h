// Multiple-choice tasks: how often a model finds the right choice the most likely one.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_TASK_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_TASK_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/evaluate/choice_item.h"
#include "worker/engine/evaluate/loglikelihood.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

// Items with their tokens: one request for each choice, item after item.
struct ChoiceTask {
  std::string name;
  std::vector<ChoiceItem> items;
  std::vector<ContinuationRequest> requests;
};

// INVALID_ARGUMENT: the item (from 1) and choice that cannot be scored, and why.
absl::StatusOr<ChoiceTask> MakeChoiceTask(std::string name, std::vector<ChoiceItem> items,
                                          const Tokenizer& tokenizer, int64_t max_length);

// What a model makes of one item. The first of equally likely choices is its answer, as numpy's
// argmax has it.
struct ItemScore {
  std::vector<Loglikelihood> choices;
  bool correct = false;
  // By log-likelihood over the choice's length in characters, and in UTF-8 bytes. False where the
  // choices are contexts.
  bool correct_by_characters = false;
  bool correct_by_bytes = false;
};

// A mean over items, with the standard error of a mean: sample deviation / sqrt(count).
struct Accuracy {
  double mean = 0;
  double standard_error = 0;  // 0 of a single item.
};

// Named as lm-eval names them.
struct ChoiceScores {
  std::vector<ItemScore> items;
  Accuracy acc;
  // Only if every item's choices are its continuations.
  bool has_normalized = false;
  Accuracy acc_norm;   // By characters.
  Accuracy acc_bytes;  // By bytes.
};

// The longest input of `task`; 0 without items.
int64_t LongestInput(const ChoiceTask& task);

// By MeasureLoglikelihoods.
ChoiceScores MeasureChoiceTask(WeightSource& source, const ChoiceTask& task,
                               int64_t batch_tokens = 4096,
                               const std::function<void(double)>& on_progress = {});

// The part of MeasureChoiceTask behind the model: likelihoods of `task.requests` to scores.
ChoiceScores ScoreChoices(const std::vector<ChoiceItem>& items,
                          const std::vector<Loglikelihood>& likelihoods);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_TASK_H_
