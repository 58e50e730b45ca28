#include "server/queue/limit_enforcement.h"

#include <string>
#include <vector>

#include "base/status_macros.h"
#include "server/queue/job_limits.h"
#include "server/queue/task_transitions.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr absl::Duration kLookInterval = absl::Seconds(1);
// At a time; the next look takes the others.
constexpr int kMaxJobs = 100;
// Clocks that are kept by a time service move by less at once.
constexpr absl::Duration kLeastJump = absl::Seconds(1);

}  // namespace

void LimitEnforcement::KeepOffset() {
  const absl::Duration offset = limit_clock_.Offset();
  if (store_.shared() || absl::AbsDuration(offset - kept_offset_) < kLeastJump) return;
  spdlog::warn("the wall clock was set by {}; limits count on",
               absl::FormatDuration(kept_offset_ - offset));
  if (const absl::Status kept = store_.KeepLimitClockOffset(offset); !kept.ok()) {
    spdlog::error("that could not be kept, will be tried again: {}", kept.ToString());
    return;
  }
  kept_offset_ = offset;
}

void LimitEnforcement::Enforce() {
  const absl::Duration now = clock_.Monotonic();
  if (now < next_look_) {
    // What has woken this thread may be a job with a limit.
    any_limits_ = true;
    return;
  }
  next_look_ = now + kLookInterval;
  KeepOffset();
  std::vector<JobName> struck;
  // Those that are damaged must not take the places of others.
  const int limit = kMaxJobs + static_cast<int>(damaged_.size());
  const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(struck, reader.JobsPastLimit(limit_clock_.Now(), limit));
    ASSIGN_OR_RETURN(any_limits_, reader.AnyJobHasLimit());
    return absl::OkStatus();
  });
  if (!status.ok()) return;  // The next look comes.
  // There may be more.
  if (static_cast<int>(struck.size()) == limit) next_look_ = now;
  for (const JobName& name : struck) {
    if (damaged_.contains(name.ToString())) continue;
    const absl::Status done = Strike(name);
    if (done.ok() || absl::IsNotFound(done)) continue;
    if (!absl::IsUnavailable(done)) {
      // It does not mend itself.
      damaged_.insert(name.ToString());
      spdlog::error("{}: its limit cannot be enforced: {}", name.ToString(), done.ToString());
    } else {
      spdlog::error("{}: its limit could not be enforced, will be tried again: {}", name.ToString(),
                    done.ToString());
    }
  }
}

absl::Status LimitEnforcement::Strike(const JobName& name) {
  return changes_.Run(
      name,
      [&](StoreTransaction& store, JobChange& change, absl::Time now,
          CommitEffects& effects) -> absl::Status {
        // Each strike takes its limit out of those that are next: one may stand behind another.
        std::optional<LimitStrike> strike;
        while ((strike = NextLimit(change.record())) && strike->time <= change.limits_now()) {
          effects.changed = true;
          RETURN_IF_ERROR(strike->limit == JobLimit::kSearchTime
                              ? EndSearch(store, change, now)
                              : FailJob(store, change,
                                        LimitError(strike->limit, change.job().spec().limits()),
                                        now));
        }
        return absl::OkStatus();
      });
}

std::optional<absl::Duration> LimitEnforcement::TimeToNext() {
  if (!any_limits_) return std::nullopt;
  return next_look_ - clock_.Monotonic();
}

}  // namespace qpruner::server
