#include "client/pareto_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qpruner {
namespace {

// A grid of characters with a finer grid of dots (2 by 4 in each, as Braille has them) below it.
class Canvas {
 public:
  Canvas(int columns, int rows, const TextStyle& style)
      : columns_(columns), rows_(rows), style_(style), cells_(columns * rows) {}

  // A level or upright line between the middles of two cells.
  void Line(int x0, int y0, int x1, int y1, Paint paint) {
    for (int x = std::min(x0, x1); x <= std::max(x0, x1); ++x) {
      for (int y = std::min(y0, y1); y <= std::max(y0, y1); ++y) {
        if (!Inside(x, y)) continue;
        Cell& cell = At(x, y);
        cell.line_paint = paint;
        // The dots that lie on the line, from middle to middle.
        if (y0 == y1) {
          if (x != std::min(x0, x1)) cell.dots |= Dot(0, kMiddle);
          cell.dots |= Dot(1, kMiddle);
          cell.ascii_line = cell.ascii_line == 0 ? '-' : '+';
        } else {
          for (int dot = 0; dot < 4; ++dot) {
            const bool above = dot<kMiddle, below = dot> kMiddle;
            if (above && y == std::min(y0, y1)) continue;
            if (below && y == std::max(y0, y1)) continue;
            cell.dots |= Dot(1, dot);
          }
          cell.ascii_line = cell.ascii_line == 0 ? '|' : '+';
        }
      }
    }
  }

  void Put(int x, int y, std::string glyph, Paint paint) {
    if (!Inside(x, y)) return;
    At(x, y).glyph = std::move(glyph);
    At(x, y).paint = paint;
  }

  // Writes ASCII `text` from (x, y) on if nothing is there and a free column stays on either side,
  // or the glyph at column `owner`, which the text belongs to.
  bool Label(int x, int y, int owner, const std::string& text, Paint paint) {
    const int size = static_cast<int>(text.size());
    if (y < 0 || y >= rows_ || x < 0 || x + size > columns_) return false;
    for (int i = -1; i <= size; ++i) {
      const int at = x + i;
      const bool beside = i == -1 || i == size;
      if (at >= 0 && at < columns_ && !IsFree(at, y) && !(beside && at == owner)) return false;
    }
    for (int i = 0; i < size; ++i) {
      if (text[i] != ' ') Put(x + i, y, std::string(1, text[i]), paint);
    }
    return true;
  }

  bool IsFree(int x, int y) const {
    const Cell& cell = cells_[y * columns_ + x];
    return cell.glyph.empty() && cell.dots == 0;
  }

  std::string Row(int y) const {
    std::string out;
    int skipped = 0;
    for (int x = 0; x < columns_; ++x) {
      const Cell& cell = cells_[y * columns_ + x];
      std::string text = cell.glyph;
      Paint paint = cell.paint;
      if (text.empty() && cell.dots != 0) {
        paint = cell.line_paint;
        text = style_.unicode ? Braille(cell.dots) : std::string(1, cell.ascii_line);
      }
      if (text.empty()) {
        ++skipped;
        continue;
      }
      absl::StrAppend(&out, std::string(skipped, ' '), Painted(style_, paint, text));
      skipped = 0;
    }
    return out;
  }

 private:
  struct Cell {
    std::string glyph;
    Paint paint = Paint::kNone;
    uint8_t dots = 0;
    char ascii_line = 0;
    Paint line_paint = Paint::kNone;
  };
  // The dot row that meets the middle of a glyph such as a filled circle.
  static constexpr int kMiddle = 2;

  static uint8_t Dot(int column, int row) {
    constexpr uint8_t kDots[2][4] = {{0x01, 0x02, 0x04, 0x40}, {0x08, 0x10, 0x20, 0x80}};
    return kDots[column][row];
  }
  static std::string Braille(uint8_t dots) {
    // U+2800 and the dots.
    return {static_cast<char>(0xE2), static_cast<char>(0xA0 | dots >> 6),
            static_cast<char>(0x80 | (dots & 0x3F))};
  }
  bool Inside(int x, int y) const { return x >= 0 && x < columns_ && y >= 0 && y < rows_; }
  Cell& At(int x, int y) { return cells_[y * columns_ + x]; }

  const int columns_;
  const int rows_;
  const TextStyle style_;
  std::vector<Cell> cells_;
};

struct Range {
  double low;
  double high;
};

struct Tick {
  double value;
  std::string label;
};

// The largest of 1, 2, 5 times a power of ten that divides `span` into at least `pieces`.
double NiceStep(double span, int pieces) {
  const double rough = span / pieces;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {5.0, 2.0}) {
    if (rough >= factor * power) return factor * power;
  }
  return power;
}

std::string TickLabel(double value) {
  if (value < 0.00095) return absl::StrFormat("%.0e", value);
  return absl::StrFormat("%.4g", value);
}

// Round values on a logarithmic axis, at most `most`: decades, else 1-2-5, else evenly spaced.
std::vector<Tick> LogTicks(Range range, int most) {
  std::vector<Tick> ticks;
  const double decades = std::log10(range.high / range.low);
  if (decades >= 1.5) {
    const int step = std::max(1, static_cast<int>(std::ceil(decades / most)));
    const std::vector<double> factors =
        decades < 2.5 ? std::vector<double>{1, 2, 5} : std::vector<double>{1};
    for (int exponent = static_cast<int>(std::floor(std::log10(range.low)));
         exponent <= std::ceil(std::log10(range.high)); exponent += 1) {
      if (exponent % step != 0) continue;
      for (const double factor : factors) {
        const double value = factor * std::pow(10, exponent);
        if (value >= range.low && value <= range.high) ticks.push_back({value, TickLabel(value)});
      }
    }
  } else {
    for (int pieces = 3; pieces <= 2 * most; ++pieces) {
      const double step = NiceStep(range.high - range.low, pieces);
      std::vector<Tick> even;
      for (double n = std::ceil(range.low / step); n * step <= range.high; ++n) {
        even.push_back({n * step, TickLabel(n * step)});
      }
      if (static_cast<int>(even.size()) > most && !ticks.empty()) break;
      ticks = std::move(even);
      if (static_cast<int>(ticks.size()) >= 4) break;
    }
  }
  return ticks;
}

// Round numbers of one unit for all.
std::vector<Tick> ByteTicks(Range range, int most, std::string* unit_name) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double unit = 1;
  size_t index = 0;
  while (range.high / unit >= 1000 && index + 1 < std::size(units)) {
    unit *= 1024;
    ++index;
  }
  *unit_name = units[index];
  const double step = NiceStep((range.high - range.low) / unit, std::max(2, most));
  const double used = (range.high - range.low) / unit / step > most + 1 ? step * 2 : step;
  std::vector<Tick> ticks;
  for (double n = std::ceil(range.low / unit / used); n * used * unit <= range.high; ++n) {
    ticks.push_back({n * used * unit, absl::StrFormat("%.6g", n * used)});
  }
  return ticks;
}

struct Point {
  double bytes;
  double quality;
  bool operator<(const Point& other) const {
    return bytes != other.bytes ? bytes < other.bytes : quality > other.quality;
  }
};

bool IsShown(double bytes, double quality) { return bytes > 0 && std::isfinite(quality); }

double QualityOf(const v1::Trial& trial, v1::Search::QualityMetric metric) {
  return metric == v1::Search::PERPLEXITY ? trial.metrics().perplexity()
                                          : trial.metrics().kl_divergence();
}

struct Glyphs {
  const char* front;
  const char* chosen;
  const char* uniform;
  const char* dominated;
  const char* budget;
  const char* axis;
  const char* tick;
  const char* corner;
  const char* floor;
  const char* floor_tick;
};
constexpr Glyphs kUnicode = {"●", "◆", "▲", "·", "┊", "│", "┤", "└", "─", "┬"};
constexpr Glyphs kAscii = {"o", "#", "^", ".", ":", "|", "+", "+", "-", "+"};

}  // namespace

std::optional<int64_t> BudgetBytes(const v1::CompressionJob& job) {
  if (job.report().budget_bytes() > 0) return job.report().budget_bytes();
  if (job.spec().search().has_max_bytes()) return job.spec().search().max_bytes();
  return std::nullopt;
}

std::string PlotParetoFront(const v1::ParetoFront& front, const std::vector<v1::Trial>& trials,
                            const ParetoPlotOptions& options) {
  const TextStyle& style = options.style;
  const Glyphs& glyphs = style.unicode ? kUnicode : kAscii;

  std::set<std::string> on_front;
  std::vector<Point> points;
  for (const v1::ParetoPoint& point : front.points()) {
    on_front.insert(point.trial());
    const double bytes = static_cast<double>(point.weight_bytes());
    if (IsShown(bytes, point.quality())) points.push_back({bytes, point.quality()});
  }
  if (points.empty()) return "  No trial has finished yet.\n";
  std::sort(points.begin(), points.end());
  std::vector<const v1::Trial*> dominated;
  for (const v1::Trial& trial : trials) {
    if (trial.state() != v1::Trial::SUCCEEDED || on_front.contains(trial.name())) continue;
    const double quality = QualityOf(trial, front.quality_metric());
    if (!IsShown(static_cast<double>(trial.metrics().weight_bytes()), quality)) continue;
    dominated.push_back(&trial);
  }

  // Ranges. A quality of nothing lost has no logarithm: it is put below the best that has one.
  Range x{points.front().bytes, points.back().bytes};
  Range y{std::numeric_limits<double>::infinity(), 0};
  const auto widen = [&](double bytes, double quality) {
    x = {std::min(x.low, bytes), std::max(x.high, bytes)};
    if (quality > 0) y = {std::min(y.low, quality), std::max(y.high, quality)};
  };
  bool nothing_lost = false;
  for (const Point& point : points) {
    widen(point.bytes, point.quality);
    nothing_lost |= point.quality <= 0;
  }
  for (const v1::Trial* trial : dominated) {
    widen(static_cast<double>(trial->metrics().weight_bytes()),
          QualityOf(*trial, front.quality_metric()));
  }
  if (y.high == 0) y = {1e-9, 1e-9};
  if (nothing_lost) y.low /= 3;
  // One point far below all others (16 bits of an unpruned model lose almost nothing) would press
  // those together: it is put on the floor, and its label says where it really is.
  double second = std::numeric_limits<double>::infinity();
  for (const Point& point : points) {
    if (point.quality > y.low * (1 + 1e-9)) second = std::min(second, point.quality);
  }
  const bool clipped = points.size() >= 4 && std::isfinite(second) && second / y.low > 30;
  if (clipped) y.low = second / 3;
  bool budget_left_out = false;
  if (options.budget_bytes) {
    const double budget = static_cast<double>(*options.budget_bytes);
    const double span = std::max(x.high - x.low, x.high * 0.05);
    budget_left_out = budget < x.low - span / 2 || budget > x.high + span / 2;
    if (!budget_left_out) widen(budget, 0);
  }
  const double pad = std::max((x.high - x.low) * 0.03, x.high * 1e-3);
  x = {x.low - pad, x.high + pad};
  const double stretch = std::max(std::pow(y.high / y.low, 0.04), 1.001);
  y = {clipped ? y.low : y.low / stretch, y.high * stretch};

  // Axes.
  std::string unit;
  const int rows = std::max(4, options.rows);
  std::vector<Tick> y_ticks = LogTicks(y, std::max(3, rows / 2));
  size_t label_width = 5;
  for (const Tick& tick : y_ticks) label_width = std::max(label_width, tick.label.size());
  const int columns = std::max(20, style.width - static_cast<int>(label_width) - 6);
  const std::vector<Tick> x_ticks = ByteTicks(x, columns / 10, &unit);
  const auto column = [&](double bytes) {
    return static_cast<int>(std::lround((bytes - x.low) / (x.high - x.low) * (columns - 1)));
  };
  const auto row = [&](double quality) {
    const double place = std::log(std::max(quality, y.low) / y.low) / std::log(y.high / y.low);
    return static_cast<int>(std::lround((1 - place) * (rows - 1)));
  };

  // The budget below everything, then the staircase, then what was measured.
  Canvas canvas(columns, rows, style);
  const bool has_budget = options.budget_bytes.has_value() && !budget_left_out;
  std::set<std::pair<int, int>> taken;
  bool has_uniform = false, has_dominated = false, has_chosen = false;
  for (size_t i = 0; i < points.size(); ++i) {
    const int from = column(points[i].bytes), at = row(points[i].quality);
    const int to = i + 1 < points.size() ? column(points[i + 1].bytes) : columns - 1;
    canvas.Line(from, at, to, at, Paint::kCyan);
    if (i + 1 < points.size()) canvas.Line(to, at, to, row(points[i + 1].quality), Paint::kCyan);
  }
  if (has_budget) {
    const int at = column(static_cast<double>(*options.budget_bytes));
    for (int i = 0; i < rows; ++i) {
      if (canvas.IsFree(at, i)) canvas.Put(at, i, glyphs.budget, Paint::kRed);
    }
  }
  const auto is_uniform = [](const std::string& origin) {
    return absl::StartsWith(origin, "uniform-");
  };
  const auto bits_label = [](absl::string_view origin) {
    return absl::StrCat(origin.substr(origin.rfind('-') + 1), "-bit");
  };
  for (const v1::Trial* trial : dominated) {
    if (is_uniform(trial->origin())) continue;
    has_dominated = true;
    canvas.Put(column(static_cast<double>(trial->metrics().weight_bytes())),
               row(QualityOf(*trial, front.quality_metric())), glyphs.dominated, Paint::kNone);
  }
  struct Label {
    int x, y;
    std::string text;
    Paint paint;
  };
  std::vector<Label> labels;
  const auto put_uniform = [&](double bytes, double quality, const std::string& origin) {
    has_uniform = true;
    canvas.Put(column(bytes), row(quality), glyphs.uniform, Paint::kYellow);
    const std::string below = quality < y.low ? absl::StrCat(": ", FormatQuality(quality)) : "";
    labels.push_back(
        {column(bytes), row(quality), absl::StrCat(bits_label(origin), below), Paint::kYellow});
  };
  for (const v1::Trial* trial : dominated) {
    if (!is_uniform(trial->origin())) continue;
    put_uniform(static_cast<double>(trial->metrics().weight_bytes()),
                QualityOf(*trial, front.quality_metric()), trial->origin());
  }
  const v1::ParetoPoint* chosen = nullptr;
  for (const v1::ParetoPoint& point : front.points()) {
    const double bytes = static_cast<double>(point.weight_bytes());
    if (!IsShown(bytes, point.quality())) continue;
    if (is_uniform(point.origin())) {
      put_uniform(bytes, point.quality(), point.origin());
    } else {
      canvas.Put(column(bytes), row(point.quality()), glyphs.front, Paint::kBoldCyan);
    }
    if (point.chosen()) chosen = &point;
  }
  if (chosen != nullptr) {
    has_chosen = true;
    const int cx = column(static_cast<double>(chosen->weight_bytes())), cy = row(chosen->quality());
    canvas.Put(cx, cy, glyphs.chosen, Paint::kBoldGreen);
    labels.insert(labels.begin(), {cx, cy, "chosen", Paint::kBoldGreen});
  }
  for (const Label& label : labels) {
    // Above right of the staircase is the emptier side; then left below it.
    const int size = static_cast<int>(label.text.size());
    canvas.Label(label.x + 1, label.y - 1, -1, label.text, label.paint) ||
        canvas.Label(label.x + 2, label.y, label.x, label.text, label.paint) ||
        canvas.Label(label.x - size - 1, label.y, label.x, label.text, label.paint) ||
        canvas.Label(label.x - size, label.y + 1, -1, label.text, label.paint) ||
        canvas.Label(label.x + 1, label.y + 1, -1, label.text, label.paint);
  }

  // Together.
  std::string out =
      absl::StrCat("  ",
                   Painted(style, Paint::kBold,
                           front.quality_metric() == v1::Search::PERPLEXITY
                               ? "Perplexity"
                               : "KL to the original, nats a token"),
                   Painted(style, Paint::kDim, "  (logarithmic; lower is better)"), "\n");
  for (int i = 0; i < rows; ++i) {
    const Tick* tick = nullptr;
    for (const Tick& candidate : y_ticks) {
      if (row(candidate.value) == i) tick = &candidate;
    }
    const std::string label = PadLeft(tick == nullptr ? "" : tick->label, label_width);
    absl::StrAppend(&out, "  ",
                    Painted(style, Paint::kDim,
                            absl::StrCat(label, " ", tick == nullptr ? glyphs.axis : glyphs.tick)),
                    " ", canvas.Row(i), "\n");
  }
  std::string floor = absl::StrCat(glyphs.corner, glyphs.floor);
  std::string numbers;
  const int indent = static_cast<int>(label_width) + 5;
  for (int i = 0; i < columns; ++i) {
    const auto tick = std::find_if(x_ticks.begin(), x_ticks.end(),
                                   [&](const Tick& t) { return column(t.value) == i; });
    absl::StrAppend(&floor, tick == x_ticks.end() ? glyphs.floor : glyphs.floor_tick);
    if (tick == x_ticks.end()) continue;
    const std::string text =
        absl::StrCat(tick->label, tick + 1 == x_ticks.end() ? absl::StrCat(" ", unit) : "");
    const int start = std::min(indent + i - static_cast<int>(tick->label.size()) / 2,
                               style.width - static_cast<int>(text.size()));
    if (start > DisplayWidth(numbers) || numbers.empty()) {
      numbers = absl::StrCat(PadRight(numbers, start), text);
    }
  }
  absl::StrAppend(
      &out, "  ",
      Painted(style, Paint::kDim, absl::StrCat(std::string(label_width, ' '), " ", floor)), "\n",
      Painted(style, Paint::kDim, numbers), "\n");

  // A legend of what is there, in as many lines as it takes.
  std::vector<std::string> entries;
  const auto entry = [&](const char* glyph, Paint paint, const std::string& text) {
    entries.push_back(absl::StrCat(Painted(style, paint, glyph), " ", text));
  };
  if (has_chosen) entry(glyphs.chosen, Paint::kBoldGreen, "chosen");
  entry(glyphs.front, Paint::kBoldCyan,
        absl::StrCat("front (", front.points_size(),
                     front.points_size() == 1 ? " point)" : " points)"));
  if (has_uniform) entry(glyphs.uniform, Paint::kYellow, "uniform");
  if (has_dominated) entry(glyphs.dominated, Paint::kNone, "dominated trials");
  if (options.budget_bytes) {
    entry(glyphs.budget, Paint::kRed,
          absl::StrCat("budget ", FormatBytes(*options.budget_bytes),
                       budget_left_out ? " (outside)" : ""));
  }
  std::string line;
  for (const std::string& text : entries) {
    if (!line.empty() && DisplayWidth(line) + 3 + DisplayWidth(text) > style.width) {
      absl::StrAppend(&out, line, "\n");
      line.clear();
    }
    absl::StrAppend(&line, line.empty() ? std::string(indent, ' ') : "   ", text);
  }
  return absl::StrCat(out, line, "\n");
}

}  // namespace qpruner
