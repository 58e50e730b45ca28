#include "worker/engine/evaluate/choice_task.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/engine/evaluate/python_text.h"

namespace qpruner::engine {
namespace {

const std::string& Either(const std::vector<std::string>& texts, int64_t choice) {
  return texts[texts.size() == 1 ? 0 : static_cast<size_t>(choice)];
}

// Position of the largest; the first of equal ones.
int64_t Best(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

Accuracy AccuracyOf(const std::vector<ItemScore>& items, bool ItemScore::*correct) {
  Accuracy accuracy;
  const auto count = static_cast<double>(items.size());
  if (items.empty()) return accuracy;
  for (const ItemScore& item : items) accuracy.mean += item.*correct ? 1 : 0;
  accuracy.mean /= count;
  if (items.size() == 1) return accuracy;
  double squares = 0;
  for (const ItemScore& item : items) {
    const double difference = (item.*correct ? 1 : 0) - accuracy.mean;
    squares += difference * difference;
  }
  accuracy.standard_error = std::sqrt(squares / (count - 1)) / std::sqrt(count);
  return accuracy;
}

}  // namespace

absl::StatusOr<ChoiceTask> MakeChoiceTask(std::string name, std::vector<ChoiceItem> items,
                                          const Tokenizer& tokenizer, int64_t max_length) {
  ChoiceTask task;
  task.name = std::move(name);
  for (size_t i = 0; i < items.size(); ++i) {
    for (int64_t choice = 0; choice < items[i].choice_count(); ++choice) {
      auto request =
          EncodeContinuation(tokenizer, Either(items[i].contexts, choice),
                             absl::StrCat(" ", Either(items[i].continuations, choice)), max_length);
      if (!request.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("item ", i + 1, ": choice ", choice, " ",
                         absl::string_view(request.status().message())));
      }
      task.requests.push_back(*std::move(request));
    }
  }
  task.items = std::move(items);
  return task;
}

ChoiceScores ScoreChoices(const std::vector<ChoiceItem>& items,
                          const std::vector<Loglikelihood>& likelihoods) {
  ChoiceScores scores;
  scores.has_normalized = true;
  auto next = likelihoods.begin();
  for (const ChoiceItem& item : items) {
    ItemScore& score = scores.items.emplace_back();
    std::vector<double> nats, by_characters, by_bytes;
    for (int64_t choice = 0; choice < item.choice_count(); ++choice, ++next) {
      score.choices.push_back(*next);
      const std::string& text = Either(item.partial() ? item.contexts : item.continuations, choice);
      nats.push_back(next->nats);
      by_characters.push_back(next->nats / static_cast<double>(CodePointCount(text)));
      by_bytes.push_back(next->nats / static_cast<double>(text.size()));
    }
    score.correct = Best(nats) == item.gold;
    if (item.partial()) {
      scores.has_normalized = false;
    } else {
      score.correct_by_characters = Best(by_characters) == item.gold;
      score.correct_by_bytes = Best(by_bytes) == item.gold;
    }
  }
  scores.acc = AccuracyOf(scores.items, &ItemScore::correct);
  if (scores.has_normalized) {
    scores.acc_norm = AccuracyOf(scores.items, &ItemScore::correct_by_characters);
    scores.acc_bytes = AccuracyOf(scores.items, &ItemScore::correct_by_bytes);
  }
  return scores;
}

int64_t LongestInput(const ChoiceTask& task) {
  size_t longest = 0;
  for (const ContinuationRequest& request : task.requests) {
    longest = std::max(longest, request.input.size());
  }
  return static_cast<int64_t>(longest);
}

ChoiceScores MeasureChoiceTask(WeightSource& source, const ChoiceTask& task, int64_t batch_tokens,
                               const std::function<void(double)>& on_progress) {
  return ScoreChoices(task.items,
                      MeasureLoglikelihoods(source, task.requests, batch_tokens, on_progress));
}

}  // namespace qpruner::engine
