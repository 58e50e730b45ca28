#include "server/queue/fair_shares.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace qpruner::server {
namespace {

// What a task that runs counts ahead: about a trial of a small model. Only how evenly workers that
// are free at the same moment are spread depends on it, not the shares.
constexpr double kSecondsAhead = 30;

}  // namespace

void FairShares::Advance(absl::Duration now, const std::map<std::string, int>& running) {
  const double passed = absl::ToDoubleSeconds(std::max(absl::ZeroDuration(), now - now_));
  for (const auto& [project, count] : running_) {
    if (count == 0) continue;
    // Unknown: it is here by a lease of another server.
    clocks_.try_emplace(project, start_).first->second +=
        count * passed / policies_.Of(project).weight;
  }
  now_ = now;
  running_ = running;
}

void FairShares::SetWaiting(const std::set<std::string>& projects) {
  const auto is_here = [&](const std::string& project) {
    return waiting_.contains(project) || Running(project) > 0;
  };
  std::optional<double> last;
  for (const auto& [project, clock] : clocks_) {
    if (is_here(project)) last = std::min(last.value_or(clock), clock);
  }
  if (last) start_ = std::max(start_, *last);
  for (const std::string& project : projects) {
    if (is_here(project)) continue;
    double& clock = clocks_[project];
    clock = std::max(clock, start_);
  }
  waiting_ = projects;
  // Who is gone and has no more than others has nothing to be remembered.
  std::erase_if(clocks_,
                [&](const auto& entry) { return !is_here(entry.first) && entry.second <= start_; });
}

int FairShares::Running(const std::string& project) const {
  const auto found = running_.find(project);
  return found == running_.end() ? 0 : found->second;
}

double FairShares::Position(const std::string& project) const {
  const auto found = clocks_.find(project);
  const double clock = found == clocks_.end() ? start_ : found->second;
  return clock + Running(project) * kSecondsAhead / policies_.Of(project).weight;
}

bool FairShares::IsFull(const std::string& project) const {
  const int most = policies_.Of(project).max_running_tasks;
  return most > 0 && Running(project) >= most;
}

}  // namespace qpruner::server
