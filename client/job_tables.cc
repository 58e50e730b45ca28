#include "client/job_tables.h"

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/job_view.h"

namespace qpruner {
namespace {

std::string FormatTime(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(time.seconds()),
                          absl::LocalTimeZone());
}

Paint PaintOf(v1::CompressionJob::State state) {
  switch (state) {
    case v1::CompressionJob::SUCCEEDED:
      return Paint::kGreen;
    case v1::CompressionJob::FAILED:
      return Paint::kRed;
    case v1::CompressionJob::RUNNING:
      return Paint::kCyan;
    case v1::CompressionJob::CANCELLED:
    case v1::CompressionJob::CANCELLING:
    case v1::CompressionJob::PAUSING:
    case v1::CompressionJob::PAUSED:
      return Paint::kYellow;
    default:
      return Paint::kNone;
  }
}

std::string Took(const google::protobuf::Timestamp& from, const google::protobuf::Timestamp& to) {
  return FormatElapsed(absl::Seconds(to.seconds() - from.seconds()) +
                       absl::Nanoseconds(to.nanos() - from.nanos()));
}

template <typename Enum>
std::string Names(const google::protobuf::RepeatedField<int>& values,
                  const std::string& (*name)(Enum)) {
  std::vector<std::string> names;
  for (const int value : values) names.push_back(name(static_cast<Enum>(value)));
  return absl::StrJoin(names, ", ");
}

}  // namespace

std::string FormatColumns(const std::vector<std::string>& heading,
                          const std::vector<std::vector<std::string>>& rows,
                          const std::vector<size_t>& right, const TextStyle& style) {
  std::vector<int> widths;
  for (size_t i = 0; i < heading.size(); ++i) {
    int width = DisplayWidth(heading[i]);
    for (const auto& row : rows) width = std::max(width, DisplayWidth(row[i]));
    widths.push_back(width);
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string out;
    for (size_t i = 0; i < cells.size(); ++i) {
      const bool to_right = std::find(right.begin(), right.end(), i) != right.end();
      if (i > 0) absl::StrAppend(&out, "  ");
      absl::StrAppend(&out, to_right               ? PadLeft(cells[i], widths[i])
                            : i + 1 < cells.size() ? PadRight(cells[i], widths[i])
                                                   : cells[i]);
    }
    return std::string(absl::StripTrailingAsciiWhitespace(out));
  };
  std::string out = absl::StrCat(Painted(style, Paint::kBold, line(heading)), "\n");
  for (const auto& row : rows) absl::StrAppend(&out, line(row), "\n");
  return out;
}

std::string ArtifactPath(const v1::Artifact& artifact) {
  constexpr absl::string_view kPart = "/artifacts/";
  const size_t at = artifact.name().find(std::string(kPart));
  return at == std::string::npos ? artifact.name() : artifact.name().substr(at + kPart.size());
}

std::string FormatJobs(const std::vector<v1::CompressionJob>& jobs, const TextStyle& style) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::CompressionJob& job : jobs) {
    std::string state = StateName(job.state());
    if (job.state() == v1::CompressionJob::RUNNING) {
      absl::StrAppend(&state, absl::StrFormat(" %.0f %%", 100 * job.progress().fraction()));
    }
    rows.push_back({LastPart(job.name()), Painted(style, PaintOf(job.state()), state),
                    FormatTime(job.create_time()),
                    Shortened(style, Printable(job.display_name()), 36)});
  }
  return FormatColumns({"JOB", "STATE", "CREATED", "NAME"}, rows, {}, style);
}

std::string FormatJob(const v1::CompressionJob& job, const TextStyle& style) {
  std::string out;
  const auto fact = [&](absl::string_view name, const std::string& value) {
    if (!value.empty())
      absl::StrAppend(&out, Painted(style, Paint::kDim, PadRight(name, 10)), value, "\n");
  };
  fact("job", job.name());
  fact("name", Printable(job.display_name()));
  std::string state = Painted(style, PaintOf(job.state()), StateName(job.state()));
  if (job.state() == v1::CompressionJob::RUNNING) {
    absl::StrAppend(&state, ", ", StageName(job.stage()),
                    absl::StrFormat(", %.0f %%", 100 * job.progress().fraction()));
    if (!job.progress().message().empty()) {
      absl::StrAppend(&state, ": ", Printable(job.progress().message()));
    }
  }
  fact("state", state);
  if (job.has_error()) fact("error", Painted(style, Paint::kRed, Printable(job.error().message())));
  fact("model", Printable(job.spec().model().uri()));
  std::vector<std::string> labels;
  const std::map<std::string, std::string> sorted(job.labels().begin(), job.labels().end());
  for (const auto& [key, value] : sorted)
    labels.push_back(absl::StrCat(Printable(key), "=", Printable(value)));
  fact("labels", absl::StrJoin(labels, ", "));
  if (job.priority() != 0) fact("priority", absl::StrCat(job.priority()));
  if (job.progress().trial_count() > 0) {
    fact("trials", absl::StrCat(job.progress().completed_trial_count(), " of ",
                                job.progress().trial_count()));
  }
  if (job.retry_count() > 0) fact("retries", absl::StrCat(job.retry_count()));
  if (job.device_seconds() > 0) {
    fact("on workers", FormatElapsed(absl::Seconds(job.device_seconds())));
  }
  fact("created", FormatTime(job.create_time()));
  if (job.has_end_time()) {
    fact("ended", absl::StrCat(FormatTime(job.end_time()), " (after ",
                               Took(job.create_time(), job.end_time()), ")"));
  }
  return out;
}

std::string FormatTrials(const std::vector<v1::Trial>& trials, const v1::ParetoFront& front,
                         const TextStyle& style) {
  std::map<std::string, const v1::ParetoPoint*> points;
  for (const v1::ParetoPoint& point : front.points()) points[point.trial()] = &point;
  std::vector<std::vector<std::string>> rows;
  for (const v1::Trial& trial : trials) {
    const bool done = trial.state() == v1::Trial::SUCCEEDED;
    const auto point = points.find(trial.name());
    const std::string place = point == points.end() ? ""
                              : point->second->chosen()
                                  ? Painted(style, Paint::kBoldGreen, "chosen")
                                  : Painted(style, Paint::kCyan, "front");
    const v1::ModelMetrics& m = trial.metrics();
    rows.push_back({absl::StrCat(trial.index()), Printable(trial.origin()),
                    absl::AsciiStrToLower(v1::Trial::State_Name(trial.state())),
                    done ? FormatBytes(m.weight_bytes()) : "",
                    done ? absl::StrFormat("%.2f", m.average_bits()) : "",
                    done ? FormatPerplexity(m.perplexity()) : "",
                    done ? FormatQuality(m.kl_divergence()) : "",
                    trial.has_end_time() ? Took(trial.start_time(), trial.end_time()) : "",
                    Printable(trial.worker()), place});
  }
  return FormatColumns(
      {"#", "ORIGIN", "STATE", "WEIGHTS", "BITS", "PERPLEXITY", "KL", "TOOK", "WORKER", ""}, rows,
      {0, 3, 4, 5, 6, 7}, style);
}

std::string FormatFront(const v1::ParetoFront& front, const TextStyle& style) {
  std::vector<std::vector<std::string>> rows;
  const bool perplexity = front.quality_metric() == v1::Search::PERPLEXITY;
  for (const v1::ParetoPoint& point : front.points()) {
    rows.push_back({LastPart(point.trial()), FormatBytes(point.weight_bytes()),
                    absl::StrFormat("%.2f", point.average_bits()),
                    perplexity ? FormatPerplexity(point.quality()) : FormatQuality(point.quality()),
                    Printable(point.origin()),
                    point.chosen()          ? Painted(style, Paint::kBoldGreen, "chosen")
                    : point.within_budget() ? "within budget"
                                            : Painted(style, Paint::kDim, "over budget")});
  }
  return FormatColumns({"TRIAL", "WEIGHTS", "BITS", perplexity ? "PERPLEXITY" : "KL", "ORIGIN", ""},
                       rows, {0, 1, 2, 3}, style);
}

std::string FormatArtifacts(const std::vector<v1::Artifact>& artifacts, const TextStyle& style) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::Artifact& artifact : artifacts) {
    rows.push_back({FormatBytes(artifact.size_bytes()), artifact.sha256().substr(0, 12),
                    Printable(ArtifactPath(artifact))});
  }
  return FormatColumns({"SIZE", "SHA-256", "PATH"}, rows, {0}, style);
}

std::string FormatDownloads(const std::vector<v1::Artifact>& artifacts, const std::string& folder,
                            const TextStyle& style) {
  struct Sum {
    int64_t bytes = 0;
    int files = 0;
  };
  std::map<std::string, Sum> sums;
  int64_t total = 0;
  for (const v1::Artifact& artifact : artifacts) {
    const std::string path = ArtifactPath(artifact);
    const size_t slash = path.find('/');
    Sum& sum = sums[slash == std::string::npos ? path : path.substr(0, slash + 1)];
    sum.bytes += artifact.size_bytes();
    ++sum.files;
    total += artifact.size_bytes();
  }
  std::vector<std::pair<std::string, std::string>> lines;
  int width = 0;
  for (const auto& [name, sum] : sums) {
    const std::string path = absl::StrCat(folder, absl::EndsWith(folder, "/") ? "" : "/", name);
    width = std::max(width, DisplayWidth(path));
    const bool is_folder = absl::EndsWith(name, "/");
    lines.emplace_back(
        path,
        absl::StrCat(
            FormatBytes(sum.bytes),
            is_folder ? absl::StrCat(", ", sum.files, sum.files == 1 ? " file" : " files") : ""));
  }
  std::string out;
  for (const auto& [path, size] : lines) {
    absl::StrAppend(&out, "  ", PadRight(path, width), "  ", Painted(style, Paint::kDim, size),
                    "\n");
  }
  return out;
}

std::string FormatCapabilities(const v1::ListCapabilitiesResponse& capabilities,
                               const TextStyle& style) {
  std::string out;
  const auto fact = [&](absl::string_view name, const std::string& value) {
    absl::StrAppend(&out, Painted(style, Paint::kDim, PadRight(name, 18)), value, "\n");
  };
  fact("server", capabilities.server_version());
  fact("models", absl::StrJoin(capabilities.model_types(), ", "));
  fact("candidate bits", absl::StrJoin(capabilities.candidate_bits(), ", "));
  fact("4-bit formats", Names(capabilities.four_bit_formats(),
                              v1::Quantization::FourBit_Name<v1::Quantization::FourBit>));
  fact("8-bit formats", Names(capabilities.eight_bit_formats(),
                              v1::Quantization::EightBit_Name<v1::Quantization::EightBit>));
  fact("2, 3-bit formats", Names(capabilities.low_bit_formats(),
                                 v1::Quantization::LowBit_Name<v1::Quantization::LowBit>));
  fact("importances",
       Names(capabilities.importances(), v1::Pruning::Importance_Name<v1::Pruning::Importance>));
  fact("search",
       Names(capabilities.algorithms(), v1::Search::Algorithm_Name<v1::Search::Algorithm>));
  fact("uri schemes", absl::StrJoin(capabilities.uri_schemes(), ", "));
  if (capabilities.workers_size() == 0) {
    fact("workers", Painted(style, Paint::kYellow, "none: jobs wait"));
    return out;
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::ListCapabilitiesResponse::Worker& worker : capabilities.workers()) {
    rows.push_back(
        {Printable(worker.name()), Printable(worker.device()),
         worker.device_memory_bytes() > 0 ? FormatBytes(worker.device_memory_bytes()) : "-",
         absl::StrCat(worker.running_task_count())});
  }
  return absl::StrCat(out, "\n",
                      FormatColumns({"WORKER", "DEVICE", "MEMORY", "TASKS"}, rows, {2, 3}, style));
}

}  // namespace qpruner
