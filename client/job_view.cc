#include "client/job_view.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/pareto_plot.h"

namespace qpruner {
namespace {

using Job = v1::CompressionJob;

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string QualityName(v1::Search::QualityMetric metric) {
  return metric == v1::Search::PERPLEXITY ? "perplexity" : "KL";
}

// A bar of `width` columns, of which `fraction` is filled.
std::string Bar(const TextStyle& style, double fraction, int width) {
  const double filled = std::clamp(fraction, 0.0, 1.0) * width;
  const int whole = static_cast<int>(filled);
  std::string full, rest;
  if (!style.unicode) {
    return absl::StrCat("[", std::string(whole, '#'), std::string(width - whole, '-'), "]");
  }
  for (int i = 0; i < whole; ++i) absl::StrAppend(&full, "━");
  int left = width - whole;
  if (left > 0 && filled - whole >= 0.5) {
    absl::StrAppend(&full, "╸");
    --left;
  }
  for (int i = 0; i < left; ++i) absl::StrAppend(&rest, style.color ? "━" : "─");
  return absl::StrCat(Painted(style, Paint::kCyan, full), Painted(style, Paint::kDim, rest));
}

}  // namespace

std::string LastPart(const std::string& name) { return name.substr(name.rfind('/') + 1); }

std::string StateName(Job::State state) { return absl::AsciiStrToLower(Job::State_Name(state)); }

std::string StageName(Job::Stage stage) { return absl::AsciiStrToLower(Job::Stage_Name(stage)); }

std::string DescribePoint(const v1::ParetoPoint& point, v1::Search::QualityMetric metric) {
  return absl::StrCat(QualityName(metric), " ",
                      metric == v1::Search::PERPLEXITY ? FormatPerplexity(point.quality())
                                                       : FormatQuality(point.quality()),
                      " at ", FormatBytes(point.weight_bytes()),
                      absl::StrFormat(", %.2f bits", point.average_bits()), " (trial ",
                      LastPart(point.trial()), ", ", Printable(point.origin()), ")");
}

void JobView::Apply(const v1::JobEvent& event) {
  last_sequence_ = event.sequence();
  last_time_ = ToTime(event.time());
  if (start_ == absl::InfinitePast()) start_ = last_time_;
  switch (event.event_case()) {
    case v1::JobEvent::kStateChanged: {
      const v1::JobEvent::StateChanged& change = event.state_changed();
      if (change.state() == Job::RUNNING && running_since_ == absl::InfinitePast()) {
        running_since_ = last_time_;
      }
      if (change.stage() != stage_) {
        if (stage_ != Job::STAGE_UNSPECIFIED) stages_[stage_].second = last_time_;
        if (change.stage() != Job::STAGE_UNSPECIFIED) {
          stages_[change.stage()] = {last_time_, absl::InfinitePast()};
        }
      }
      state_ = change.state();
      stage_ = change.stage();
      if (change.has_error()) error_ = change.error();
      break;
    }
    case v1::JobEvent::kProgress:
      progress_ = event.progress();
      progress_time_ = last_time_;
      break;
    case v1::JobEvent::kTrialUpdated:
      trials_[event.trial_updated().index()] = event.trial_updated();
      break;
    case v1::JobEvent::kParetoChanged:
      front_ = event.pareto_changed();
      break;
    case v1::JobEvent::kLog:
    case v1::JobEvent::kArtifactAdded:
    case v1::JobEvent::EVENT_NOT_SET:
      break;
  }
}

std::vector<v1::Trial> JobView::Trials() const {
  std::vector<v1::Trial> trials;
  for (const auto& [index, trial] : trials_) trials.push_back(trial);
  return trials;
}

int JobView::FinishedTrials() const {
  int count = 0;
  for (const auto& [index, trial] : trials_) {
    count += trial.state() == v1::Trial::SUCCEEDED || trial.state() == v1::Trial::INFEASIBLE ||
             trial.state() == v1::Trial::FAILED;
  }
  return std::max(count, progress_.completed_trial_count());
}

std::optional<absl::Duration> JobView::StageTime(Job::Stage stage) const {
  const auto found = stages_.find(stage);
  if (found == stages_.end() || found->second.second == absl::InfinitePast()) return std::nullopt;
  return found->second.second - found->second.first;
}

std::optional<absl::Duration> JobView::TimeLeft(absl::Time now) const {
  const double done = progress_.fraction();
  if (state_ != Job::RUNNING || running_since_ == absl::InfinitePast() || done < 0.04 ||
      done >= 1) {
    return std::nullopt;
  }
  const absl::Duration spent = progress_time_ - running_since_;
  if (spent < absl::Seconds(2)) return std::nullopt;
  const absl::Duration left = spent * ((1 - done) / done) - (now - progress_time_);
  return std::max(left, absl::ZeroDuration());
}

const v1::ParetoPoint* JobView::Best() const {
  const v1::ParetoPoint* best = nullptr;
  for (const v1::ParetoPoint& point : front_.points()) {
    if (point.chosen()) return &point;
    if (point.within_budget() && (best == nullptr || point.quality() < best->quality())) {
      best = &point;
    }
  }
  return best;
}

std::vector<std::string> FormatProgress(const JobView& view, const Job& job, absl::Time now,
                                        const ProgressOptions& options) {
  const TextStyle& style = options.style;
  std::vector<std::string> lines;
  const std::string title =
      Printable(job.display_name().empty() ? job.spec().model().uri() : job.display_name());
  lines.push_back(absl::StrCat(
      "  ", Painted(style, Paint::kBold, Shortened(style, title, style.width - 4)), ""));
  lines.push_back("");

  // The stages side by side.
  const char* const done_mark = style.unicode ? "✓" : "+";
  const char* const now_mark = style.unicode ? "▸" : ">";
  const char* const later_mark = style.unicode ? "·" : ".";
  std::string stages = " ";
  for (const Job::Stage stage : {Job::PREPARE, Job::SEARCH, Job::FINALIZE}) {
    std::string name = StageName(stage);
    const std::optional<absl::Duration> took = view.StageTime(stage);
    if (stage == Job::SEARCH && view.progress().trial_count() > 0 &&
        (view.stage() == stage || took)) {
      absl::StrAppend(&name, " ", view.FinishedTrials(), "/", view.progress().trial_count());
    }
    if (took && view.stage() != stage) {
      absl::StrAppend(&stages, " ", Painted(style, Paint::kGreen, done_mark), " ", name, " ",
                      Painted(style, Paint::kDim, FormatElapsed(*took)), "  ");
    } else if (view.stage() == stage) {
      absl::StrAppend(&stages, " ",
                      Painted(style, Paint::kBoldCyan, absl::StrCat(now_mark, " ", name)), "  ");
    } else {
      absl::StrAppend(&stages, " ",
                      Painted(style, Paint::kDim, absl::StrCat(later_mark, " ", name)), "  ");
    }
  }
  lines.push_back(stages);

  std::string times = absl::StrFormat(" %3.0f %%", std::floor(100 * view.progress().fraction()));
  if (view.start() != absl::InfinitePast()) {
    absl::StrAppend(&times, "  ", FormatElapsed(now - view.start()));
  }
  if (const std::optional<absl::Duration> left = view.TimeLeft(now)) {
    absl::StrAppend(&times, ", about ",
                    FormatElapsed(std::max(absl::Seconds(1), absl::Trunc(*left, absl::Seconds(1)))),
                    " left");
  }
  // Room for the longest times, so that the bar keeps its length.
  const int bar = std::clamp(style.width - 34, 10, 60);
  lines.push_back(absl::StrCat("  ", Bar(style, view.progress().fraction(), bar), times));

  std::string doing = Printable(view.progress().message());
  if (view.state() == Job::PENDING) doing = "Waiting for a worker";
  if (view.state() == Job::CANCELLING) doing = "Cancelling: waiting for its tasks to stop";
  if (view.state() == Job::PAUSING) doing = "Pausing: waiting for its tasks to stop";
  if (view.state() == Job::PAUSED) doing = "Paused, until `qpruner resume`";
  lines.push_back(
      absl::StrCat("  ", Painted(style, Paint::kDim, Shortened(style, doing, style.width - 4))));
  if (const v1::ParetoPoint* best = view.Best()) {
    lines.push_back(absl::StrCat(
        "  ", Painted(style, Paint::kBoldGreen, best->chosen() ? "chosen" : "best so far"), "  ",
        Shortened(style, DescribePoint(*best, view.front().quality_metric()), style.width - 18)));
  } else if (view.front().points_size() > 0) {
    lines.push_back("  no trial within the budget yet");
  }

  const int left = options.rows - static_cast<int>(lines.size()) - (options.hint.empty() ? 1 : 3);
  constexpr int kAroundPlot = 5;  // Heading, axis, numbers, legend in two lines.
  if (view.front().points_size() > 0 && left >= kAroundPlot + 6) {
    lines.push_back("");
    ParetoPlotOptions plot;
    plot.style = style;
    plot.style.width = std::min(style.width, 84);
    plot.rows = std::min(12, left - kAroundPlot - 1);
    plot.budget_bytes = options.budget_bytes;
    for (const auto& line :
         absl::StrSplit(PlotParetoFront(view.front(), view.Trials(), plot), '\n')) {
      lines.emplace_back(line);
    }
    while (!lines.empty() && lines.back().empty()) lines.pop_back();
  }
  if (!options.hint.empty()) {
    lines.push_back("");
    lines.push_back(absl::StrCat(
        "  ", Painted(style, Paint::kYellow, Shortened(style, options.hint, style.width - 4))));
  }
  if (static_cast<int>(lines.size()) >= options.rows) {
    lines.resize(static_cast<size_t>(std::max(1, options.rows - 1)));
  }
  return lines;
}

std::string PlainProgress::Line(const JobView& view, const v1::JobEvent& event) {
  // How long nothing must have been said before progress is, so that a log of hours stays short.
  // The search speaks through its trials.
  constexpr absl::Duration kNewMessage = absl::Seconds(3);
  constexpr absl::Duration kSameMessage = absl::Seconds(15);
  constexpr absl::Duration kDuringSearch = absl::Seconds(60);
  const absl::Time time = ToTime(event.time());
  const absl::Time start = view.start() == absl::InfinitePast() ? time : view.start();
  const auto line = [&](const std::string& text) {
    last_line_ = time;
    return absl::StrCat(PadLeft(FormatElapsed(time - start), 8), "  ", text);
  };
  switch (event.event_case()) {
    case v1::JobEvent::kStateChanged: {
      const v1::JobEvent::StateChanged& change = event.state_changed();
      std::string text = StateName(change.state());
      if (change.stage() != Job::STAGE_UNSPECIFIED) {
        absl::StrAppend(&text, ": ", StageName(change.stage()));
      }
      if (change.has_error()) absl::StrAppend(&text, ": ", Printable(change.error().message()));
      return line(text);
    }
    case v1::JobEvent::kProgress: {
      const v1::Progress& progress = event.progress();
      const absl::Duration quiet = view.stage() == Job::SEARCH           ? kDuringSearch
                                   : progress.message() == last_message_ ? kSameMessage
                                                                         : kNewMessage;
      if (progress.message().empty() || time - last_line_ < quiet) return "";
      last_message_ = progress.message();
      return line(absl::StrFormat("%3.0f %%  %s", std::floor(100 * progress.fraction()),
                                  Printable(progress.message())));
    }
    case v1::JobEvent::kTrialUpdated: {
      const v1::Trial& trial = event.trial_updated();
      const std::string who =
          absl::StrCat("trial ", trial.index(), " (", Printable(trial.origin()), "): ");
      if (trial.state() == v1::Trial::SUCCEEDED) {
        return line(absl::StrCat(who, "KL ", FormatQuality(trial.metrics().kl_divergence()),
                                 ", perplexity ", FormatPerplexity(trial.metrics().perplexity()),
                                 ", ", FormatBytes(trial.metrics().weight_bytes()),
                                 absl::StrFormat(", %.2f bits", trial.metrics().average_bits())));
      }
      if (trial.state() == v1::Trial::INFEASIBLE || trial.state() == v1::Trial::FAILED) {
        return line(absl::StrCat(who, absl::AsciiStrToLower(v1::Trial::State_Name(trial.state()))));
      }
      return "";
    }
    case v1::JobEvent::kLog:
      return line(
          absl::StrCat(event.log().severity() == v1::JobEvent::LogLine::WARNING ? "warning: " : "",
                       Printable(event.log().text())));
    case v1::JobEvent::kParetoChanged:
    case v1::JobEvent::kArtifactAdded:
    case v1::JobEvent::EVENT_NOT_SET:
      return "";
  }
  return "";
}

}  // namespace qpruner
