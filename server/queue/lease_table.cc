#include "server/queue/lease_table.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace qpruner::server {
namespace {

bool SameJob(const JobName& a, const JobName& b) {
  return a.project == b.project && a.job == b.job;
}

}  // namespace

HeldLease ToHeldLease(const internal::v1::TaskRecord& task, absl::Duration deadline) {
  return {.token = task.lease_token(),
          .job = JobName::Parse(task.job()).value_or(JobName{}),
          .task_id = task.task_id(),
          .attempt = task.attempt(),
          .worker = task.worker(),
          .incarnation = task.incarnation(),
          .deadline = deadline,
          .fraction = task.fraction()};
}

void LeaseTable::Put(HeldLease lease) {
  absl::MutexLock lock(&mutex_);
  std::string token = lease.token;
  leases_[std::move(token)] = std::move(lease);
}

void LeaseTable::Erase(const std::string& token) {
  absl::MutexLock lock(&mutex_);
  leases_.erase(token);
}

void LeaseTable::EraseJob(const JobName& job) {
  Take([&](const HeldLease& lease) { return SameJob(lease.job, job); });
}

void LeaseTable::Renew(const std::string& token, absl::Duration deadline) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  if (found != leases_.end()) found->second.deadline = std::max(found->second.deadline, deadline);
}

bool LeaseTable::RaiseFraction(const std::string& token, double fraction) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  if (found == leases_.end()) return false;
  double& known = found->second.fraction;
  const bool raised = fraction > known;
  known = std::clamp(std::max(known, fraction), 0.0, 1.0);
  return raised;
}

std::optional<HeldLease> LeaseTable::Find(const std::string& token) const {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  if (found == leases_.end()) return std::nullopt;
  return found->second;
}

std::optional<HeldLease> LeaseTable::FindOf(const std::string& worker,
                                            const std::string& incarnation) const {
  absl::MutexLock lock(&mutex_);
  for (const auto& [token, lease] : leases_) {
    if (lease.worker == worker && lease.incarnation == incarnation) return lease;
  }
  return std::nullopt;
}

int LeaseTable::CountOf(const std::string& worker) const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(std::count_if(leases_.begin(), leases_.end(), [&](const auto& entry) {
    return entry.second.worker == worker;
  }));
}

double LeaseTable::RunningFraction(const JobName& job, const std::string& except_token) const {
  absl::MutexLock lock(&mutex_);
  double sum = 0;
  for (const auto& [token, lease] : leases_) {
    if (token != except_token && SameJob(lease.job, job)) sum += lease.fraction;
  }
  return sum;
}

template <typename Condition>
std::vector<HeldLease> LeaseTable::Take(Condition condition) {
  std::vector<HeldLease> taken;
  {
    absl::MutexLock lock(&mutex_);
    for (auto it = leases_.begin(); it != leases_.end();) {
      const auto current = it++;
      if (!condition(current->second)) continue;
      taken.push_back(std::move(current->second));
      leases_.erase(current);
    }
  }
  // In a fixed order, whatever the hash says.
  std::sort(taken.begin(), taken.end(), [](const HeldLease& a, const HeldLease& b) {
    return std::tie(a.deadline, a.token) < std::tie(b.deadline, b.token);
  });
  return taken;
}

std::vector<HeldLease> LeaseTable::TakeExpired(absl::Duration now) {
  return Take([&](const HeldLease& lease) { return lease.deadline <= now; });
}

std::vector<HeldLease> LeaseTable::TakeOfOtherProcesses(const std::string& worker,
                                                        const std::string& incarnation) {
  return Take([&](const HeldLease& lease) {
    return lease.worker == worker && lease.incarnation != incarnation;
  });
}

std::optional<absl::Duration> LeaseTable::NextDeadline() const {
  absl::MutexLock lock(&mutex_);
  std::optional<absl::Duration> next;
  for (const auto& [token, lease] : leases_) {
    if (!next || lease.deadline < *next) next = lease.deadline;
  }
  return next;
}

}  // namespace qpruner::server
