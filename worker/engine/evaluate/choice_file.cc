#include "worker/engine/evaluate/choice_file.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "worker/engine/evaluate/python_text.h"
#include "worker/engine/formats/foreign_file.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kMaxFileBytes = 256 << 20;
constexpr int kHellaSwagEndings = 4;

// Hands out lines and counts them.
class LineReader {
 public:
  explicit LineReader(absl::string_view text) : rest_(text) {}
  bool Next(absl::string_view* line) {
    if (rest_.empty()) return false;
    const size_t end = rest_.find('\n');
    *line = rest_.substr(0, end);
    rest_ = end == absl::string_view::npos ? absl::string_view() : rest_.substr(end + 1);
    absl::ConsumeSuffix(line, "\r");
    ++number_;
    return true;
  }
  int64_t number() const { return number_; }

 private:
  absl::string_view rest_;
  int64_t number_ = 0;
};

absl::StatusOr<ChoiceItem> ReadJsonLine(absl::string_view line, const ChoiceFileOptions& options) {
  ASSIGN_OR_RETURN(const nlohmann::json row, ParseStrictJsonObject(line));
  return ChoiceItemOf(row, options.query_suffix);
}

// The lines of one item; `context` is the first of them.
absl::StatusOr<ChoiceItem> ReadHellaSwag(absl::string_view context, LineReader& lines) {
  ChoiceItem item;
  item.contexts.push_back(CleanHellaSwag(context));
  absl::string_view line;
  if (!lines.Next(&line) || line.size() != 1 || line[0] < '0' ||
      line[0] >= '0' + kHellaSwagEndings) {
    return absl::InvalidArgumentError(
        "the line behind a context must be the number of the right ending, 0 to 3");
  }
  item.gold = line[0] - '0';
  for (int i = 0; i < kHellaSwagEndings; ++i) {
    if (!lines.Next(&line)) {
      return absl::InvalidArgumentError("the file ends before the item's four endings");
    }
    item.continuations.push_back(CleanHellaSwag(line));
  }
  RETURN_IF_ERROR(CheckChoiceItem(item));
  return item;
}

}  // namespace

absl::StatusOr<std::vector<ChoiceItem>> ReadChoiceFile(const std::string& path,
                                                       const ChoiceFileOptions& options) {
  ASSIGN_OR_RETURN(const std::string text, ReadForeignFile(path, kMaxFileBytes));
  if (const int64_t byte = FindInvalidUtf8(text); byte >= 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not UTF-8 at byte ", byte));
  }
  const bool is_json = absl::StartsWith(Strip(text), "{");
  std::vector<ChoiceItem> items;
  LineReader lines(text);
  absl::string_view line;
  while ((options.limit == 0 || static_cast<int64_t>(items.size()) < options.limit) &&
         lines.Next(&line)) {
    if (Strip(line).empty()) continue;
    auto item = is_json ? ReadJsonLine(line, options) : ReadHellaSwag(line, lines);
    if (!item.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ", line ", lines.number(), ": ",
                                                     absl::string_view(item.status().message())));
    }
    items.push_back(*std::move(item));
  }
  if (items.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no item"));
  return items;
}

absl::Status WriteChoiceFile(const std::string& path, const std::vector<ChoiceItem>& items) {
  std::string text;
  for (const ChoiceItem& item : items) absl::StrAppend(&text, ChoiceItemRow(item), "\n");
  return WriteFileDurably(path, text);
}

}  // namespace qpruner::engine
