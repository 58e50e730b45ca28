#include "worker/engine/evaluate/choice_item.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/python_text.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

using nlohmann::json;

constexpr size_t kMaxChoices = 64;

absl::Status Wrong(absl::string_view field, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("\"", field, "\" ", rule));
}

absl::StatusOr<std::string> Text(const json& row, const char* field) {
  const json& value = row.at(field);
  if (!value.is_string())
    return Wrong(field, absl::StrCat("must be a string, is ", value.type_name()));
  return value.get<std::string>();
}

absl::StatusOr<std::vector<std::string>> Texts(const json& row, const char* field) {
  const json& value = row.at(field);
  const auto is_string = [](const json& element) { return element.is_string(); };
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), is_string)) {
    return Wrong(field, "must be a list of strings");
  }
  return value.get<std::vector<std::string>>();
}

// A whole number, written as one or as a string of digits (as some data sets have it).
absl::StatusOr<int64_t> Index(const json& row, const char* field) {
  const json& value = row.at(field);
  if (value.is_number_integer() && value >= 0 && value <= 1'000'000) return value.get<int64_t>();
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text.size() == 1 && text[0] >= '0' && text[0] <= '9') return text[0] - '0';
  }
  return Wrong(field, "must be the number of a choice, from 0");
}

// {"text": [...], "label": [...]} and the label that is right.
absl::StatusOr<ChoiceItem> Lettered(const json& row, std::string context) {
  const json& choices = row.at("choices");
  if (!choices.is_object() || !choices.contains("text") || !choices.contains("label")) {
    return Wrong("choices", "must have \"text\" and \"label\"");
  }
  ChoiceItem item;
  item.contexts.push_back(std::move(context));
  ASSIGN_OR_RETURN(item.continuations, Texts(choices, "text"));
  ASSIGN_OR_RETURN(const std::vector<std::string> labels, Texts(choices, "label"));
  if (labels.size() != item.continuations.size()) {
    return Wrong("choices", "must have as many labels as texts");
  }
  ASSIGN_OR_RETURN(const std::string key, Text(row, "answerKey"));
  const auto found = std::find(labels.begin(), labels.end(), Strip(key));
  if (found == labels.end()) {
    return Wrong("answerKey",
                 absl::StrCat("must be one of the labels (", absl::StrJoin(labels, ", "), "), is ",
                              QuotedForMessage(key)));
  }
  item.gold = found - labels.begin();
  return item;
}

absl::StatusOr<ChoiceItem> Plain(const json& row, absl::string_view query_suffix) {
  ChoiceItem item;
  ASSIGN_OR_RETURN(std::string query, Text(row, "query"));
  item.contexts.push_back(absl::StrCat(query, query_suffix));
  ASSIGN_OR_RETURN(item.continuations, Texts(row, "choices"));
  ASSIGN_OR_RETURN(item.gold, Index(row, "gold"));
  return item;
}

absl::StatusOr<ChoiceItem> Partial(const json& row, absl::string_view) {
  ChoiceItem item;
  ASSIGN_OR_RETURN(item.contexts, Texts(row, "context_options"));
  if (item.contexts.size() < 2) return Wrong("context_options", "must have at least 2 choices");
  ASSIGN_OR_RETURN(std::string continuation, Text(row, "continuation"));
  item.continuations.push_back(std::move(continuation));
  ASSIGN_OR_RETURN(item.gold, Index(row, "gold"));
  return item;
}

absl::StatusOr<ChoiceItem> BoolQ(const json& row, absl::string_view) {
  ChoiceItem item;
  ASSIGN_OR_RETURN(const std::string passage, Text(row, "passage"));
  ASSIGN_OR_RETURN(const std::string question, Text(row, "question"));
  item.contexts.push_back(absl::StrCat(passage, "\nQuestion: ", question, "?\nAnswer:"));
  item.continuations = {"no", "yes"};
  if (row.contains("label")) {
    ASSIGN_OR_RETURN(item.gold, Index(row, "label"));
  } else {
    if (!row.at("answer").is_boolean()) return Wrong("answer", "must be true or false");
    item.gold = row.at("answer").get<bool>() ? 1 : 0;
  }
  return item;
}

absl::StatusOr<ChoiceItem> Piqa(const json& row, absl::string_view) {
  ChoiceItem item;
  ASSIGN_OR_RETURN(const std::string goal, Text(row, "goal"));
  ASSIGN_OR_RETURN(std::string first, Text(row, "sol1"));
  ASSIGN_OR_RETURN(std::string second, Text(row, "sol2"));
  item.contexts.push_back(absl::StrCat("Question: ", goal, "\nAnswer:"));
  item.continuations = {std::move(first), std::move(second)};
  ASSIGN_OR_RETURN(item.gold, Index(row, "label"));
  return item;
}

absl::StatusOr<ChoiceItem> HellaSwag(const json& row, absl::string_view) {
  ChoiceItem item;
  ASSIGN_OR_RETURN(const std::string activity, Text(row, "activity_label"));
  ASSIGN_OR_RETURN(const std::string first, Text(row, "ctx_a"));
  ASSIGN_OR_RETURN(const std::string second, Text(row, "ctx_b"));
  item.contexts.push_back(
      CleanHellaSwag(absl::StrCat(activity, ": ", first, " ", Capitalize(second))));
  ASSIGN_OR_RETURN(item.continuations, Texts(row, "endings"));
  for (std::string& ending : item.continuations) ending = CleanHellaSwag(ending);
  ASSIGN_OR_RETURN(item.gold, Index(row, "label"));
  return item;
}

absl::StatusOr<ChoiceItem> Arc(const json& row, absl::string_view) {
  ASSIGN_OR_RETURN(const std::string question, Text(row, "question"));
  return Lettered(row, absl::StrCat("Question: ", question, "\nAnswer:"));
}

absl::StatusOr<ChoiceItem> OpenBookQa(const json& row, absl::string_view) {
  ASSIGN_OR_RETURN(std::string stem, Text(row, "question_stem"));
  return Lettered(row, std::move(stem));
}

absl::StatusOr<ChoiceItem> WinoGrande(const json& row, absl::string_view) {
  ASSIGN_OR_RETURN(const std::string sentence, Text(row, "sentence"));
  const size_t gap = sentence.find('_');
  if (gap == std::string::npos) return Wrong("sentence", "must have a gap, written \"_\"");
  ChoiceItem item;
  for (const char* option : {"option1", "option2"}) {
    ASSIGN_OR_RETURN(const std::string filling, Text(row, option));
    item.contexts.push_back(absl::StrCat(sentence.substr(0, gap), filling));
  }
  item.continuations.push_back(std::string(Strip(absl::string_view(sentence).substr(gap + 1))));
  ASSIGN_OR_RETURN(const std::string answer, Text(row, "answer"));
  if (answer != "1" && answer != "2") return Wrong("answer", "must be \"1\" or \"2\"");
  item.gold = answer == "1" ? 0 : 1;
  return item;
}

struct RowKind {
  std::vector<const char*> keys;  // All of them must be there.
  bool others_allowed;
  absl::StatusOr<ChoiceItem> (*read)(const json&, absl::string_view query_suffix);
};

const std::vector<RowKind>& RowKinds() {
  static const auto& kinds = *new std::vector<RowKind>{
      {{"query", "choices", "gold"}, false, Plain},
      {{"context_options", "continuation", "gold"}, false, Partial},
      {{"passage", "question", "label"}, true, BoolQ},
      {{"passage", "question", "answer"}, true, BoolQ},
      {{"goal", "sol1", "sol2", "label"}, true, Piqa},
      {{"activity_label", "ctx_a", "ctx_b", "endings", "label"}, true, HellaSwag},
      {{"question", "choices", "answerKey"}, true, Arc},
      {{"question_stem", "choices", "answerKey"}, true, OpenBookQa},
      {{"sentence", "option1", "option2", "answer"}, true, WinoGrande},
  };
  return kinds;
}

std::string WithoutBrackets(absl::string_view text) {
  std::string result;
  while (true) {
    const size_t open = text.find('[');
    // `.` does not match a line break: a bracket that closes on another line stays.
    const size_t close = open == absl::string_view::npos ? open : text.find_first_of("]\n", open);
    if (close == absl::string_view::npos) return absl::StrCat(result, text);
    if (text[close] == '\n') {
      absl::StrAppend(&result, text.substr(0, close));
      text = text.substr(close);
      continue;
    }
    absl::StrAppend(&result, text.substr(0, open));
    text = text.substr(close + 1);
  }
}

}  // namespace

std::string CleanHellaSwag(absl::string_view text) {
  return ReplaceAll(WithoutBrackets(ReplaceAll(Strip(text), " [title]", ". ")), "  ", " ");
}

absl::Status CheckChoiceItem(const ChoiceItem& item) {
  const char* const choices = item.partial() ? "context_options" : "choices";
  if (item.choice_count() < 2 || item.choice_count() > static_cast<int64_t>(kMaxChoices)) {
    return Wrong(choices,
                 absl::StrCat("must be 2 to ", kMaxChoices, " choices, are ", item.choice_count()));
  }
  for (const std::string& context : item.contexts) {
    // The score is conditional on it.
    if (Strip(context).empty()) {
      return Wrong(item.partial() ? choices : "query", "must be more than white space");
    }
  }
  for (const std::string& continuation : item.continuations) {
    if (continuation.empty()) {
      return Wrong(item.partial() ? "continuation" : choices, "must not be empty");
    }
  }
  if (item.gold < 0 || item.gold >= item.choice_count()) {
    return Wrong("gold", absl::StrCat("must be one of the ", item.choice_count(),
                                      " choices, from 0; is ", item.gold));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChoiceItem> ChoiceItemOf(const json& row, absl::string_view query_suffix) {
  for (const RowKind& kind : RowKinds()) {
    const auto has = [&](const char* key) { return row.contains(key); };
    if (!std::all_of(kind.keys.begin(), kind.keys.end(), has)) continue;
    if (!kind.others_allowed && row.size() != kind.keys.size()) {
      for (const auto& [key, value] : row.items()) {
        if (std::find(kind.keys.begin(), kind.keys.end(), key) != kind.keys.end()) continue;
        return absl::InvalidArgumentError(absl::StrCat("unknown field ", QuotedForMessage(key),
                                                       " beside ", absl::StrJoin(kind.keys, ", ")));
      }
    }
    ASSIGN_OR_RETURN(ChoiceItem item, kind.read(row, query_suffix));
    RETURN_IF_ERROR(CheckChoiceItem(item));
    return item;
  }
  std::vector<std::string> kinds;
  for (const RowKind& kind : RowKinds()) {
    kinds.push_back(absl::StrCat("{", absl::StrJoin(kind.keys, ", "), "}"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("its fields are those of no known kind of row: ", absl::StrJoin(kinds, ", ")));
}

std::string ChoiceItemRow(const ChoiceItem& item) {
  nlohmann::ordered_json row;
  if (item.partial()) {
    row["context_options"] = item.contexts;
    row["continuation"] = item.continuations.front();
  } else {
    row["query"] = item.contexts.front();
    row["choices"] = item.continuations;
  }
  row["gold"] = item.gold;
  return row.dump();
}

}  // namespace qpruner::engine
