#include "client/job_follower.h"

#include <signal.h>

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/json_output.h"
#include "client/pareto_plot.h"

namespace qpruner {
namespace {

// Events on their way from the watching thread to the one that shows them. Thread-safe.
class EventQueue {
 public:
  void Push(const v1::JobEvent& event) {
    absl::MutexLock lock(&mutex_);
    events_.push_back(event);
  }
  void End(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    status_ = std::move(status);
  }
  std::deque<v1::JobEvent> TakeAll(bool* ended, absl::Status* status) {
    absl::MutexLock lock(&mutex_);
    *ended = ended_;
    *status = status_;
    return std::exchange(events_, {});
  }

 private:
  absl::Mutex mutex_;
  std::deque<v1::JobEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// How long after a first Ctrl-C a second one counts.
constexpr absl::Duration kSecondPress = absl::Seconds(2);

}  // namespace

FollowResult FollowJob(JobClient& client, const v1::CompressionJob& job, SignalQueue& signals,
                       ConnectionNotice& notice, const FollowOptions& options) {
  FollowResult result;
  EventQueue queue;
  Cancellation cancellation;
  std::thread watcher([&] {
    const absl::Status status = client.WatchJob(
        job.name(), options.after_sequence,
        [&](const v1::JobEvent& event) {
          notice.Set("");
          queue.Push(event);
          signals.Wake();
          return true;
        },
        &cancellation);
    queue.End(status);
    signals.Wake();
  });

  LiveRegion region(options.write);
  PlainProgress plain;
  std::string hint, said;
  absl::Time leave_at = absl::InfiniteFuture();
  bool cancel_sent = false;
  const auto say = [&](const std::string& text) {
    if (options.output == FollowOutput::kLive) {
      hint = text;
    } else if (options.output == FollowOutput::kPlain) {
      options.write(absl::StrCat(text, "\n"));
    }
  };
  const auto cancel_job = [&] {
    cancel_sent = true;
    say("Cancelling the job. Ctrl-C again stops waiting for it.");
    const absl::StatusOr<v1::CompressionJob> answer = client.CancelJob(job.name());
    if (!answer.ok()) say(absl::StrCat("It could not be cancelled: ", answer.status().message()));
  };

  // The server's clock may differ from this one: times are shown by the server's, moved on by ours.
  absl::Duration clock_offset = absl::ZeroDuration();
  for (;;) {
    const int signal = signals.Next(absl::Milliseconds(200));
    if (signal != 0) {
      const bool again = leave_at != absl::InfiniteFuture();
      if (options.interrupt == InterruptPolicy::kLeaveJob && !cancel_sent && signal != SIGINT) {
        leave_at = absl::InfinitePast();
      } else if (options.interrupt == InterruptPolicy::kLeaveJob && !cancel_sent && !again) {
        leave_at = absl::Now() + kSecondPress;
        say("Leaving; the job goes on. Ctrl-C again cancels the job instead.");
      } else if (!cancel_sent) {
        leave_at = absl::InfiniteFuture();
        cancel_job();
      } else {
        leave_at = absl::InfinitePast();
      }
    }

    bool ended = false;
    absl::Status status;
    for (const v1::JobEvent& event : queue.TakeAll(&ended, &status)) {
      clock_offset = absl::FromUnixSeconds(event.time().seconds()) +
                     absl::Nanoseconds(event.time().nanos()) - absl::Now();
      switch (options.output) {
        case FollowOutput::kJsonLines:
          options.write(absl::StrCat(ToJson(event, /*indented=*/false), "\n"));
          break;
        case FollowOutput::kPlain:
          if (const std::string line = plain.Line(result.view, event); !line.empty()) {
            options.write(absl::StrCat(line, "\n"));
          }
          break;
        case FollowOutput::kLive:
          if (event.has_log()) {
            const bool warning = event.log().severity() == v1::JobEvent::LogLine::WARNING;
            for (const std::string& line :
                 Wrapped(Printable(event.log().text()), options.terminal.style.width - 4)) {
              region.PrintAbove(absl::StrCat(
                  "  ",
                  Painted(options.terminal.style, warning ? Paint::kYellow : Paint::kDim, line),
                  "\r\n"));
            }
          }
          break;
        case FollowOutput::kQuiet:
          break;
      }
      result.view.Apply(event);
    }
    const std::string trouble = notice.Get();
    if (trouble != said && !trouble.empty() && options.output == FollowOutput::kPlain) say(trouble);
    said = trouble;
    if (options.output == FollowOutput::kLive && !ended) {
      ProgressOptions progress;
      progress.style = options.terminal.style;
      progress.rows = options.terminal.rows;
      progress.budget_bytes = BudgetBytes(job);
      progress.hint = trouble.empty() ? hint : trouble;
      region.Draw(FormatProgress(result.view, job, absl::Now() + clock_offset, progress));
    }
    if (ended) {
      result.status = status;
      break;
    }
    if (options.check) {
      if (absl::Status check = options.check(); !check.ok()) {
        result.status = check;
        break;
      }
    }
    if (absl::Now() >= leave_at) {
      result.status = absl::CancelledError("Interrupted");
      break;
    }
  }
  cancellation.Cancel();
  watcher.join();
  region.Clear();
  return result;
}

}  // namespace qpruner
