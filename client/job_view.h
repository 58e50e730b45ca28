// What a watcher knows of a job: a fold of its events, and how that is shown while it runs.
#ifndef QPRUNER_CLIENT_JOB_VIEW_H_
#define QPRUNER_CLIENT_JOB_VIEW_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/text_style.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner {

// Not thread-safe. Depends on nothing but the events that were applied.
class JobView {
 public:
  // Events in order, from 1 on or from wherever the watch began.
  void Apply(const v1::JobEvent& event);

  v1::CompressionJob::State state() const { return state_; }
  v1::CompressionJob::Stage stage() const { return stage_; }
  const v1::Progress& progress() const { return progress_; }
  const v1::ParetoFront& front() const { return front_; }
  const google::rpc::Status& error() const { return error_; }
  int64_t last_sequence() const { return last_sequence_; }
  std::vector<v1::Trial> Trials() const;
  int FinishedTrials() const;
  // Time of the first event seen.
  absl::Time start() const { return start_; }
  absl::Time last_time() const { return last_time_; }
  // How long a stage took, if it began and ended.
  std::optional<absl::Duration> StageTime(v1::CompressionJob::Stage stage) const;
  // From the share of the work that is done; nothing while that says too little.
  std::optional<absl::Duration> TimeLeft(absl::Time now) const;
  // The point of the front with the best quality within the budget; null if there is none yet.
  const v1::ParetoPoint* Best() const;

 private:
  v1::CompressionJob::State state_ = v1::CompressionJob::STATE_UNSPECIFIED;
  v1::CompressionJob::Stage stage_ = v1::CompressionJob::STAGE_UNSPECIFIED;
  v1::Progress progress_;
  v1::ParetoFront front_;
  google::rpc::Status error_;
  std::map<int, v1::Trial> trials_;
  std::map<v1::CompressionJob::Stage, std::pair<absl::Time, absl::Time>> stages_;
  int64_t last_sequence_ = 0;
  absl::Time start_ = absl::InfinitePast();
  absl::Time running_since_ = absl::InfinitePast();
  absl::Time progress_time_ = absl::InfinitePast();
  absl::Time last_time_ = absl::InfinitePast();
};

struct ProgressOptions {
  TextStyle style;
  // Lines at most; the plot is left out where it does not fit.
  int rows = 24;
  std::optional<int64_t> budget_bytes;
  // A last line, such as what Ctrl-C does.
  std::string hint;
};

// The live picture: stages, bar, what is being done, best point so far and the growing front.
std::vector<std::string> FormatProgress(const JobView& view, const v1::CompressionJob& job,
                                        absl::Time now, const ProgressOptions& options);

// Lines for an output that is no terminal: what `event` changed, if it is worth a line. Call before
// applying `event` to `view`. Not thread-safe.
class PlainProgress {
 public:
  // Without a newline; empty: nothing.
  std::string Line(const JobView& view, const v1::JobEvent& event);

 private:
  absl::Time last_line_ = absl::InfinitePast();
  std::string last_message_;
};

// "KL 0.02290 at 233.0 KiB, 6.73 bits (trial 10, bayesian)".
std::string DescribePoint(const v1::ParetoPoint& point, v1::Search::QualityMetric metric);

// The last part of a resource name.
std::string LastPart(const std::string& name);

// "pending", "running", "search", "succeeded", ...
std::string StateName(v1::CompressionJob::State state);
std::string StageName(v1::CompressionJob::Stage stage);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JOB_VIEW_H_
