#include "client/report_table.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"

namespace qpruner {
namespace {

// "uniform-4" for people.
std::string RowTitle(const std::string& label) {
  if (absl::StartsWith(label, "uniform-")) {
    return absl::StrCat("uniform ", label.substr(8), "-bit");
  }
  return Printable(label);
}

bool IsResult(const std::string& label) { return label == "chosen" || label == "fine-tuned"; }

// Few bits are cool, 16 are warm.
Paint PaintOfBits(int bits) {
  if (bits <= 3) return Paint::kCyan;
  if (bits <= 4) return Paint::kBlue;
  if (bits <= 8) return Paint::kGreen;
  return Paint::kYellow;
}

// "model.layers.3.mlp_down" is block 3 and "mlp_down"; false for names of another form.
bool SplitGroup(const std::string& group, int* block, std::string* kind) {
  const std::vector<std::string> parts = absl::StrSplit(group, '.');
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!absl::SimpleAtoi(parts[i], block) || *block < 0 || *block > 10'000) continue;
    kind->clear();
    for (size_t j = i + 1; j < parts.size(); ++j)
      absl::StrAppend(kind, kind->empty() ? "" : ".", parts[j]);
    if (kind->empty()) *kind = "block";
    return true;
  }
  return false;
}

// Rows of cells under a header, the first column to the left and the others to the right. A row
// whose mark is true stands out; remarks follow the rows they belong to.
std::string FormatTable(const std::vector<std::string>& header,
                        const std::vector<std::vector<std::string>>& rows,
                        const std::vector<bool>& marks, const std::vector<std::string>& remarks,
                        const TextStyle& style) {
  std::vector<int> widths;
  for (size_t i = 0; i < header.size(); ++i) {
    int width = DisplayWidth(header[i]);
    for (const auto& row : rows) width = std::max(width, DisplayWidth(row[i]));
    widths.push_back(width);
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string out;
    for (size_t i = 0; i < cells.size(); ++i) {
      absl::StrAppend(&out, i == 0 ? PadRight(cells[i], widths[i])
                                   : absl::StrCat("   ", PadLeft(cells[i], widths[i])));
    }
    return out;
  };
  int total = 0;
  for (const int width : widths) total += width + 3;
  // One escape sequence for the whole rule, not one for each piece of it.
  std::string rule;
  for (int i = 0; i < total; ++i) absl::StrAppend(&rule, style.unicode ? "─" : "-");
  std::string out = absl::StrCat("    ", Painted(style, Paint::kBold, line(header)), "\n  ",
                                 Painted(style, Paint::kDim, rule), "\n");
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string mark = marks[i] ? (style.unicode ? "▸ " : "> ") : "  ";
    absl::StrAppend(&out, "  ",
                    Painted(style, marks[i] ? Paint::kBoldGreen : Paint::kNone,
                            absl::StrCat(mark, line(rows[i]))),
                    Painted(style, Paint::kDim, remarks[i]), "\n");
  }
  return out;
}

// The metrics of the tasks, a column for each model that was scored on them. Empty without tasks.
std::string FormatTasks(const v1::JobReport& report, const TextStyle& style) {
  std::vector<std::string> header = {"task"};
  std::vector<std::vector<std::string>> rows;
  const auto cell = [&](const v1::TaskScore::Accuracy& accuracy) {
    return absl::StrFormat("%.3f %s %.3f", accuracy.mean(), style.unicode ? "±" : "+-",
                           accuracy.standard_error());
  };
  for (const v1::JobReport::Row& row : report.rows()) {
    if (row.metrics().tasks().empty()) continue;
    header.push_back(RowTitle(row.label()));
    size_t line = 0;
    const auto add = [&](const v1::TaskScore& task, const char* metric,
                         const v1::TaskScore::Accuracy& accuracy) {
      if (line == rows.size()) {
        rows.emplace_back(header.size() - 1, "-");
        rows.back()[0] = absl::StrCat(Printable(task.name()), " ", metric);
      }
      rows[line++].push_back(cell(accuracy));
    };
    for (const v1::TaskScore& task : row.metrics().tasks()) {
      add(task, "acc", task.acc());
      if (task.has_acc_norm()) add(task, "acc_norm", task.acc_norm());
    }
    for (; line < rows.size(); ++line) rows[line].push_back("-");
  }
  if (rows.empty()) return "";
  return absl::StrCat("\n", FormatTable(header, rows, std::vector<bool>(rows.size()),
                                        std::vector<std::string>(rows.size()), style));
}

// What PREPARE, all trials together and FINALIZE took. Empty if the report does not tell.
std::string FormatUses(const v1::JobReport& report, const TextStyle& style) {
  struct Sum {
    std::string title;
    int tasks = 0;
    double seconds = 0;
    int64_t host_bytes = 0;
    int64_t device_bytes = 0;
  };
  std::vector<Sum> sums;
  bool device = false;
  for (const v1::TaskUse& use : report.task_uses()) {
    const bool trial = absl::StartsWith(use.task(), "trial-");
    const std::string title = trial ? "trials" : Printable(use.task());
    if (sums.empty() || sums.back().title != title) sums.push_back({title});
    Sum& sum = sums.back();
    ++sum.tasks;
    sum.seconds += use.seconds();
    sum.host_bytes = std::max(sum.host_bytes, use.peak_host_memory_bytes());
    sum.device_bytes = std::max(sum.device_bytes, use.peak_device_memory_bytes());
    device = device || use.peak_device_memory_bytes() > 0;
  }
  if (sums.empty()) return "";
  std::vector<std::string> header = {"", "time", "peak host memory"};
  if (device) header.push_back("peak device memory");
  std::vector<std::vector<std::string>> rows;
  const auto bytes = [](int64_t count) { return count > 0 ? FormatBytes(count) : "-"; };
  for (const Sum& sum : sums) {
    rows.push_back({sum.title == "trials" ? absl::StrCat(sum.tasks, " trials") : sum.title,
                    FormatElapsed(absl::Seconds(sum.seconds)), bytes(sum.host_bytes)});
    if (device) rows.back().push_back(bytes(sum.device_bytes));
  }
  return absl::StrCat("\n", FormatTable(header, rows, std::vector<bool>(rows.size()),
                                        std::vector<std::string>(rows.size()), style));
}

}  // namespace

std::string Sparkline(const std::vector<double>& values, const TextStyle& style) {
  if (values.empty()) return "";
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const std::vector<std::string> levels =
      style.unicode ? std::vector<std::string>{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}
                    : std::vector<std::string>{".", "-", "=", "#"};
  std::string out;
  for (const double value : values) {
    const double place = *high > *low ? (value - *low) / (*high - *low) : 0;
    absl::StrAppend(&out, levels[static_cast<size_t>(std::lround(place * (levels.size() - 1)))]);
  }
  return out;
}

std::string FormatReport(const v1::JobReport& report, const TextStyle& style) {
  std::vector<std::string> header = {"", "weights", "size", "bits", "perplexity", "KL to original"};
  const bool timed = std::any_of(
      report.rows().begin(), report.rows().end(),
      [](const v1::JobReport::Row& row) { return row.metrics().tokens_per_second() > 0; });
  if (timed) header.push_back("tokens/s");
  std::vector<std::vector<std::string>> rows;
  std::vector<bool> marks;
  std::vector<std::string> remarks;
  double original = 0;
  for (const v1::JobReport::Row& row : report.rows()) {
    const v1::ModelMetrics& m = row.metrics();
    if (row.label() == "original") original = static_cast<double>(m.weight_bytes());
    rows.push_back(
        {RowTitle(row.label()), FormatBytes(m.weight_bytes()),
         original > 0
             ? absl::StrFormat("%.0f %%", 100.0 * static_cast<double>(m.weight_bytes()) / original)
             : "-",
         m.average_bits() > 0 ? absl::StrFormat("%.2f", m.average_bits()) : "-",
         FormatPerplexity(m.perplexity()), FormatQuality(m.kl_divergence())});
    if (timed) {
      rows.back().push_back(
          m.tokens_per_second() > 0 ? absl::StrFormat("%.0f", m.tokens_per_second()) : "-");
    }
    marks.push_back(IsResult(row.label()));
    remarks.push_back(row.adapter_bytes() > 0
                          ? absl::StrCat("  + ", FormatBytes(row.adapter_bytes()), " adapter")
                          : "");
  }
  std::string out = absl::StrCat(FormatTable(header, rows, marks, remarks, style),
                                 FormatTasks(report, style), FormatUses(report, style));

  // What else there is to say.
  std::vector<std::string> facts;
  for (const v1::JobReport::Row& row : report.rows()) {
    if (row.label() != "chosen" || report.budget_bytes() <= 0) continue;
    const double share = static_cast<double>(row.metrics().weight_bytes()) /
                         static_cast<double>(report.budget_bytes());
    facts.push_back(absl::StrFormat("Budget %s: the chosen model takes %.1f %% of it.",
                                    FormatBytes(report.budget_bytes()), 100 * share));
  }
  if (report.rows_size() > 0) {
    facts.push_back(absl::StrCat("Measured on ", report.rows(0).metrics().token_count(),
                                 " tokens of text that no choice was based on."));
  }
  if (report.fine_tune_curve_size() >= 2) {
    std::vector<double> losses;
    for (const v1::FineTunePoint& point : report.fine_tune_curve()) {
      losses.push_back(point.selection_loss());
    }
    // At most 24 columns, ends included.
    std::vector<double> shown;
    const size_t count = std::min<size_t>(24, losses.size());
    for (size_t i = 0; i < count; ++i) {
      shown.push_back(losses[i * (losses.size() - 1) / (count - 1)]);
    }
    facts.push_back(absl::StrFormat(
        "Fine-tuning %s held-out loss %.3f to %.3f in %d steps.",
        Painted(style, Paint::kCyan, Sparkline(shown, style)), losses.front(), losses.back(),
        report.fine_tune_curve(report.fine_tune_curve_size() - 1).step()));
  }
  if (!facts.empty()) absl::StrAppend(&out, "\n");
  for (const std::string& fact : facts) absl::StrAppend(&out, "  ", fact, "\n");
  for (const std::string& note : report.notes()) {
    bool first = true;
    for (const std::string& text : Wrapped(Printable(note), std::min(style.width, 100) - 8)) {
      absl::StrAppend(&out, "  ",
                      first ? Painted(style, Paint::kYellow, "Note:") : std::string(5, ' '), " ",
                      text, "\n");
      first = false;
    }
  }
  return out;
}

std::string FormatPrecisionMap(const v1::Trial& trial, const TextStyle& style) {
  std::vector<std::string> kinds;
  std::map<std::pair<std::string, int>, int> bits;
  int blocks = 0;
  for (const v1::GroupPrecision& precision : trial.precisions()) {
    int block = 0;
    std::string kind;
    if (!SplitGroup(Printable(precision.group()), &block, &kind)) return "";
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    bits[{kind, block}] = precision.bits();
    blocks = std::max(blocks, block + 1);
  }
  if (bits.empty()) return "";
  int title = static_cast<int>(std::string("block").size());
  for (const std::string& kind : kinds) title = std::max(title, DisplayWidth(kind));
  const int columns = std::max(1, (style.width - title - 4) / 3);
  std::string out;
  for (int first = 0; first < blocks; first += columns) {
    const int last = std::min(blocks, first + columns);
    std::string heads;
    for (int block = first; block < last; ++block)
      absl::StrAppend(&heads, PadLeft(absl::StrCat(block), 3));
    absl::StrAppend(&out, "  ",
                    Painted(style, Paint::kDim, absl::StrCat(PadRight("block", title), heads)),
                    "\n");
    for (const std::string& kind : kinds) {
      absl::StrAppend(&out, "  ", PadRight(kind, title));
      for (int block = first; block < last; ++block) {
        const auto found = bits.find({kind, block});
        absl::StrAppend(&out, found == bits.end()
                                  ? "   "
                                  : Painted(style, PaintOfBits(found->second),
                                            PadLeft(absl::StrCat(found->second), 3)));
      }
      absl::StrAppend(&out, "\n");
    }
  }
  return out;
}

}  // namespace qpruner
