// One multiple-choice question, as a row of a task file says it.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_ITEM_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_ITEM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace qpruner::engine {

// The model's answer is the choice whose continuation it finds most likely after its context.
struct ChoiceItem {
  // One context for all choices, or one for each.
  std::vector<std::string> contexts;
  // One continuation for each choice, or one for all. A space is put before each when it is scored.
  std::vector<std::string> continuations;
  // The right choice, from 0.
  int64_t gold = 0;

  // Choices that differ in their contexts (WinoGrande, after Trinh and Le 2018, arXiv 1806.02847).
  bool partial() const { return contexts.size() > 1; }
  int64_t choice_count() const {
    return static_cast<int64_t>(partial() ? contexts.size() : continuations.size());
  }
};

// A row of a task file, by the keys that it has. The first two kinds are taken as they are and may
// have no other key; the others are rows of the data sets as they are published, with the prompts
// of lm-eval 0.4, and may have other columns too.
//
//   {query, choices, gold}                           `query_suffix` is put behind the query
//   {context_options, continuation, gold}
//   {passage, question, label | answer}              BoolQ
//   {goal, sol1, sol2, label}                        PIQA
//   {activity_label, ctx_a, ctx_b, endings, label}   HellaSwag
//   {question, choices{text, label}, answerKey}      ARC
//   {question_stem, choices{text, label}, answerKey} OpenBookQA
//   {sentence, option1, option2, answer}             WinoGrande
//
// INVALID_ARGUMENT names the field and the rule: at least 2 choices (at most 64), none empty; a
// context that is more than white space; gold one of the choices.
absl::StatusOr<ChoiceItem> ChoiceItemOf(const nlohmann::json& row,
                                        absl::string_view query_suffix = "");

// HellaSwag's clean-up of a text, as lm-eval does it.
std::string CleanHellaSwag(absl::string_view text);

// What both ways of reading hold an item to; the same errors.
absl::Status CheckChoiceItem(const ChoiceItem& item);

// The row, of the first or second kind, that ChoiceItemOf reads back as `item`. No line break.
std::string ChoiceItemRow(const ChoiceItem& item);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_ITEM_H_
