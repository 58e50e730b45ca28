#include "server/queue/lease_table.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"

namespace qpruner::server {
namespace {

bool SameJob(const JobName& a, const JobName& b) {
  return a.project == b.project && a.job == b.job;
}

}  // namespace

HeldLease ToHeldLease(const internal::v1::TaskRecord& task, absl::Duration now,
                      absl::Duration lease_duration) {
  return {.token = task.lease_token(),
          .job = JobName::Parse(task.job()).value_or(JobName{}),
          .task_id = task.task_id(),
          .attempt = task.attempt(),
          .worker = task.worker(),
          .incarnation = task.incarnation(),
          .deadline = now + lease_duration,
          .fraction = task.fraction(),
          .told_fraction = task.fraction(),
          .known_since = now,
          .stored_at = now,
          .renewal_count = task.renewal_count()};
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

void LeaseTable::RenewAll(absl::Duration deadline) {
  absl::MutexLock lock(&mutex_);
  for (auto& [token, lease] : leases_) lease.deadline = std::max(lease.deadline, deadline);
}

void LeaseTable::MarkStored(const std::string& token, int64_t renewal_count, absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  if (found == leases_.end()) return;
  found->second.renewal_count = renewal_count;
  found->second.stored_at = now;
}

void LeaseTable::Sync(const std::vector<internal::v1::TaskRecord>& leased, absl::Duration read_at,
                      absl::Duration lease_duration) {
  absl::MutexLock lock(&mutex_);
  absl::flat_hash_set<std::string> current;
  for (const internal::v1::TaskRecord& task : leased) {
    current.insert(task.lease_token());
    HeldLease stored = ToHeldLease(task, read_at, lease_duration);
    const auto [entry, is_new] = leases_.try_emplace(task.lease_token(), stored);
    HeldLease& known = entry->second;
    if (is_new || known.renewal_count >= stored.renewal_count) continue;
    known.renewal_count = stored.renewal_count;
    known.stored_at = read_at;
    known.deadline = std::max(known.deadline, stored.deadline);
    known.fraction = std::max(known.fraction, stored.fraction);
  }
  absl::erase_if(leases_, [&](const auto& entry) {
    return entry.second.known_since < read_at && !current.contains(entry.first);
  });
}

void LeaseTable::RaiseFraction(const std::string& token, double fraction) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  if (found == leases_.end()) return;
  double& known = found->second.fraction;
  known = std::clamp(std::max(known, fraction), 0.0, 1.0);
}

void LeaseTable::MarkTold(const std::string& token, double fraction, const std::string& message) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  if (found == leases_.end()) return;
  found->second.told_fraction = fraction;
  if (!message.empty()) found->second.told_message = message;
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

std::map<std::string, int> LeaseTable::CountByProject() const {
  absl::MutexLock lock(&mutex_);
  std::map<std::string, int> counts;
  for (const auto& [token, lease] : leases_) ++counts[lease.job.project];
  return counts;
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
