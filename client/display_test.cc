// What people see, against golden text. To look at it and accept it: QPRUNER_UPDATE_GOLDENS=1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/durable_file.h"
#include "client/job_tables.h"
#include "client/job_view.h"
#include "client/json_output.h"
#include "client/pareto_plot.h"
#include "client/report_table.h"
#include "client/terminal.h"
#include "client/testing/example_job.h"
#include "client/text_style.h"

namespace qpruner {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr TextStyle kUnicode{.width = 80, .unicode = true, .color = false};
constexpr TextStyle kAscii{.width = 80, .unicode = false, .color = false};
constexpr TextStyle kColor{.width = 80, .unicode = true, .color = true};

void ExpectGolden(const std::string& name, const std::string& text) {
  const char* source = getenv("QPRUNER_SOURCE_DIR");
  const std::string path =
      absl::StrCat(source == nullptr ? "." : source, "/client/testing/golden/", name);
  if (getenv("QPRUNER_UPDATE_GOLDENS") != nullptr) {
    ASSERT_TRUE(WriteFileDurably(path, text).ok());
    return;
  }
  EXPECT_EQ(text, ReadFile(path, 1 << 20).value_or("")) << "golden " << path;
}

std::string WithoutEscapes(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      while (i < text.size() && text[i] != 'm') ++i;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

bool IsAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0; });
}

std::vector<int> Widths(const std::string& text) {
  std::vector<int> widths;
  for (const auto& line : absl::StrSplit(text, '\n')) widths.push_back(DisplayWidth(line));
  return widths;
}

std::string Plot(const v1::ParetoFront& front, const std::vector<v1::Trial>& trials,
                 const TextStyle& style, std::optional<int64_t> budget = std::nullopt) {
  ParetoPlotOptions options;
  options.style = style;
  options.budget_bytes = budget;
  return PlotParetoFront(front, trials, options);
}

TEST(ParetoPlotTest, Golden) {
  const ExampleJob example = MakeExampleJob();
  const std::optional<int64_t> budget = BudgetBytes(example.job);
  ExpectGolden("pareto_unicode.txt", Plot(example.front, example.trials, kUnicode, budget));
  ExpectGolden("pareto_ascii.txt", Plot(example.front, example.trials, kAscii, budget));
}

TEST(ParetoPlotTest, StaysWithinItsWidthAndAscii) {
  const ExampleJob example = MakeExampleJob();
  for (const int width : {40, 60, 84, 200}) {
    TextStyle style = kAscii;
    style.width = width;
    const std::string plot = Plot(example.front, example.trials, style, 240'000);
    EXPECT_TRUE(IsAscii(plot));
    EXPECT_THAT(Widths(plot), Each(::testing::Le(std::max(width, 66)))) << plot;
  }
}

TEST(ParetoPlotTest, ColorChangesNothingElse) {
  const ExampleJob example = MakeExampleJob();
  const std::string colored = Plot(example.front, example.trials, kColor, 240'000);
  EXPECT_NE(colored, Plot(example.front, example.trials, kUnicode, 240'000));
  EXPECT_EQ(WithoutEscapes(colored), Plot(example.front, example.trials, kUnicode, 240'000));
}

TEST(ParetoPlotTest, DegenerateFronts) {
  EXPECT_EQ(Plot({}, {}, kUnicode), "  No trial has finished yet.\n");
  v1::ParetoFront front;
  v1::ParetoPoint& point = *front.add_points();
  point.set_weight_bytes(1000);
  point.set_quality(0.5);
  EXPECT_THAT(Plot(front, {}, kUnicode), HasSubstr("●"));
  point.set_quality(0);  // Nothing lost: no logarithm.
  EXPECT_THAT(Plot(front, {}, kUnicode, 2000), HasSubstr("●"));
  // A budget far outside does not press the points together, but is named.
  EXPECT_THAT(Plot(front, {}, kUnicode, 1'000'000'000), HasSubstr("(outside)"));
  point.set_quality(std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(Plot(front, {}, kUnicode), "  No trial has finished yet.\n");
}

TEST(ReportTest, Golden) {
  const ExampleJob example = MakeExampleJob();
  ExpectGolden("report_unicode.txt", FormatReport(example.job.report(), kUnicode));
  // A GPU's memory is a column where there is one.
  v1::JobReport on_gpu = example.job.report();
  on_gpu.mutable_task_uses(1)->set_peak_device_memory_bytes(int64_t{3} << 30);
  EXPECT_THAT(FormatReport(on_gpu, kAscii), testing::HasSubstr("peak device memory"));
  EXPECT_THAT(FormatReport(on_gpu, kAscii), testing::HasSubstr("3.00 GiB"));
  ExpectGolden("report_ascii.txt", FormatReport(example.job.report(), kAscii));
  ExpectGolden("precisions.txt", FormatPrecisionMap(example.trials[9], kUnicode));
  EXPECT_TRUE(IsAscii(FormatReport(example.job.report(), kAscii)));
  EXPECT_EQ(WithoutEscapes(FormatReport(example.job.report(), kColor)),
            FormatReport(example.job.report(), kUnicode));
}

TEST(ReportTest, TextFromOutsideCannotMoveTheCursor) {
  v1::JobReport report;
  report.add_notes("\x1b[2J evil\x07 \xff note");
  EXPECT_THAT(FormatReport(report, kUnicode), HasSubstr("?[2J evil? ? note"));
}

TEST(ReportTest, MapOfNamesOfAnotherFormIsEmpty) {
  v1::Trial trial;
  EXPECT_EQ(FormatPrecisionMap(trial, kUnicode), "");
  trial.add_precisions()->set_group("head");
  EXPECT_EQ(FormatPrecisionMap(trial, kUnicode), "");
}

TEST(TablesTest, Golden) {
  setenv("TZ", "UTC", 1);
  const ExampleJob example = MakeExampleJob();
  ExpectGolden("tables.txt", absl::StrCat(FormatTrials(example.trials, example.front, kUnicode),
                                          "\n", FormatFront(example.front, kUnicode), "\n",
                                          FormatJobs({example.job}, kUnicode)));
}

TEST(JobViewTest, FoldsEventsIntoWhatTheJobIs) {
  const ExampleJob example = MakeExampleJob();
  JobView view;
  for (const v1::JobEvent& event : example.events) view.Apply(event);
  EXPECT_EQ(view.state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(view.last_sequence(), example.job.last_event_sequence());
  EXPECT_EQ(view.FinishedTrials(), static_cast<int>(example.trials.size()));
  ASSERT_NE(view.Best(), nullptr);
  EXPECT_TRUE(view.Best()->chosen());
  EXPECT_EQ(view.StageTime(v1::CompressionJob::PREPARE), absl::Seconds(4));
  EXPECT_EQ(view.TimeLeft(view.last_time()), std::nullopt);
}

TEST(JobViewTest, LivePicture) {
  const ExampleJob example = MakeExampleJob();
  JobView view;
  size_t next = 0;
  for (; example.events[next].progress().completed_trial_count() < 7; ++next) {
    view.Apply(example.events[next]);
  }
  view.Apply(example.events[next]);
  ProgressOptions options;
  options.style = kUnicode;
  options.rows = 30;
  options.budget_bytes = 240'000;
  options.hint = "Leaving; the job goes on.";
  const std::vector<std::string> lines =
      FormatProgress(view, example.job, view.last_time() + absl::Seconds(1), options);
  std::string text;
  for (const std::string& line : lines) absl::StrAppend(&text, line, "\n");
  ExpectGolden("live.txt", text);
  // No screen is too small.
  for (const int rows : {1, 5, 8, 12, 20}) {
    options.rows = rows;
    EXPECT_LE(FormatProgress(view, example.job, view.last_time(), options).size(),
              static_cast<size_t>(rows));
  }
}

TEST(JobViewTest, TimeLeftFollowsFromTheShareDone) {
  JobView view;
  v1::JobEvent event;
  event.mutable_time()->set_seconds(100);
  event.mutable_state_changed()->set_state(v1::CompressionJob::RUNNING);
  view.Apply(event);
  event.mutable_time()->set_seconds(130);
  event.mutable_progress()->set_fraction(0.25);
  view.Apply(event);
  EXPECT_EQ(view.TimeLeft(absl::FromUnixSeconds(130)), absl::Seconds(90));
  EXPECT_EQ(view.TimeLeft(absl::FromUnixSeconds(140)), absl::Seconds(80));
  EXPECT_EQ(view.TimeLeft(absl::FromUnixSeconds(500)), absl::ZeroDuration());
}

TEST(PlainProgressTest, Golden) {
  const ExampleJob example = MakeExampleJob();
  JobView view;
  PlainProgress plain;
  std::string text;
  for (const v1::JobEvent& event : example.events) {
    const std::string line = plain.Line(view, event);
    if (!line.empty()) absl::StrAppend(&text, line, "\n");
    view.Apply(event);
  }
  ExpectGolden("plain.txt", text);
}

TEST(LiveRegionTest, RedrawsOnlyWhatChanged) {
  std::vector<std::string> written;
  LiveRegion region([&](absl::string_view text) { written.emplace_back(text); });
  region.Draw({"a", "b"});
  region.Draw({"a", "b"});
  region.Draw({"a", "c"});
  region.Draw({"d"});
  region.PrintAbove("log\n");
  region.Clear();
  EXPECT_THAT(written, ElementsAre("a\r\nb\r\n", "\r\x1b[2A\r\nc\x1b[K\r\n", "\r\x1b[2A\x1b[Jd\r\n",
                                   "\r\x1b[1A\x1b[Jlog\nd\r\n", "\r\x1b[1A\x1b[J"));
}

TEST(TextStyleTest, Figures) {
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(450 * 1024), "450.0 KiB");
  EXPECT_EQ(FormatBytes(3 << 29), "1.50 GiB");
  EXPECT_EQ(FormatElapsed(absl::Seconds(0.42)), "0.4 s");
  EXPECT_EQ(FormatElapsed(absl::Seconds(59.7)), "1:00");
  EXPECT_EQ(FormatElapsed(absl::Seconds(3723)), "1:02:03");
  EXPECT_EQ(FormatQuality(0), "0");
  EXPECT_EQ(FormatQuality(2.1e-6), "2.1e-06");
  EXPECT_EQ(FormatPerplexity(27.15), "27.150");
  EXPECT_EQ(FormatPerplexity(0), "-");
  EXPECT_EQ(Shortened(kUnicode, "ein Übel", 5), "ein …");
  EXPECT_EQ(Shortened(kAscii, "something", 6), "som...");
  EXPECT_EQ(DisplayWidth("\x1b[1mÜ\x1b[0m"), 1);
  EXPECT_THAT(Wrapped("one two three", 7), ElementsAre("one two", "three"));
}

TEST(JsonTest, KeepsProtoNamesAndDefaults) {
  v1::ModelMetrics metrics;
  metrics.set_weight_bytes(5);
  const std::string json = ToJson(metrics, false);
  EXPECT_THAT(json, HasSubstr("\"weight_bytes\":\"5\""));
  EXPECT_THAT(json, HasSubstr("\"kl_divergence\":0"));
  EXPECT_THAT(json, Not(HasSubstr("\n")));
}

}  // namespace
}  // namespace qpruner
