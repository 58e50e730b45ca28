#include "server/queue/lease_table.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"

namespace qpruner::server {
namespace {

using Tokens = std::vector<std::string>;

const Tokens& TokensOf(const absl::flat_hash_map<std::string, Tokens>& index,
                       const std::string& key) {
  static const Tokens* const kNone = new Tokens;
  const auto found = index.find(key);
  return found == index.end() ? *kNone : found->second;
}

void Forget(absl::flat_hash_map<std::string, Tokens>& index, const std::string& key,
            const std::string& token) {
  const auto found = index.find(key);
  if (found == index.end()) return;
  std::erase(found->second, token);
  if (found->second.empty()) index.erase(found);
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

void LeaseTable::Insert(HeldLease lease) {
  if (const auto earlier = leases_.find(lease.token); earlier != leases_.end()) Remove(earlier);
  of_worker_[lease.worker].push_back(lease.token);
  of_job_[lease.job.ToString()].push_back(lease.token);
  std::string token = lease.token;
  leases_.emplace(std::move(token), std::move(lease));
}

HeldLease LeaseTable::Remove(Leases::iterator at) {
  HeldLease lease = std::move(at->second);
  leases_.erase(at);
  Forget(of_worker_, lease.worker, lease.token);
  Forget(of_job_, lease.job.ToString(), lease.token);
  return lease;
}

void LeaseTable::Put(HeldLease lease) {
  absl::MutexLock lock(&mutex_);
  Insert(std::move(lease));
}

void LeaseTable::Erase(const std::string& token) {
  absl::MutexLock lock(&mutex_);
  if (const auto found = leases_.find(token); found != leases_.end()) Remove(found);
}

void LeaseTable::EraseJob(const JobName& job) {
  absl::MutexLock lock(&mutex_);
  Take(Tokens(TokensOf(of_job_, job.ToString())));
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
    const auto found = leases_.find(task.lease_token());
    if (found == leases_.end()) {
      Insert(std::move(stored));
      continue;
    }
    HeldLease& known = found->second;
    if (known.renewal_count >= stored.renewal_count) continue;
    known.renewal_count = stored.renewal_count;
    known.stored_at = read_at;
    known.deadline = std::max(known.deadline, stored.deadline);
    known.fraction = std::max(known.fraction, stored.fraction);
  }
  for (auto it = leases_.begin(); it != leases_.end();) {
    const auto at = it++;
    if (at->second.known_since < read_at && !current.contains(at->first)) Remove(at);
  }
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

LogTurn LeaseTable::TakeLogs(const std::string& token, int count, absl::Duration now,
                             bool is_last) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(token);
  LogAllowance alone;
  return (found == leases_.end() ? alone : found->second.logs).Take(count, now, is_last);
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
  for (const std::string& token : TokensOf(of_worker_, worker)) {
    const HeldLease& lease = leases_.at(token);
    if (lease.incarnation == incarnation) return lease;
  }
  return std::nullopt;
}

int LeaseTable::CountOf(const std::string& worker) const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(TokensOf(of_worker_, worker).size());
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
  for (const std::string& token : TokensOf(of_job_, job.ToString())) {
    if (token != except_token) sum += leases_.at(token).fraction;
  }
  return sum;
}

std::vector<HeldLease> LeaseTable::Take(const std::vector<std::string>& tokens) {
  std::vector<HeldLease> taken;
  for (const std::string& token : tokens) taken.push_back(Remove(leases_.find(token)));
  // In a fixed order, whatever the hash says.
  std::sort(taken.begin(), taken.end(), [](const HeldLease& a, const HeldLease& b) {
    return std::tie(a.deadline, a.token) < std::tie(b.deadline, b.token);
  });
  return taken;
}

std::vector<HeldLease> LeaseTable::TakeExpired(absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> expired;
  for (const auto& [token, lease] : leases_) {
    if (lease.deadline <= now) expired.push_back(token);
  }
  return Take(expired);
}

std::vector<HeldLease> LeaseTable::TakeOfOtherProcesses(const std::string& worker,
                                                        const std::string& incarnation) {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> others;
  for (const std::string& token : TokensOf(of_worker_, worker)) {
    if (leases_.at(token).incarnation != incarnation) others.push_back(token);
  }
  return Take(others);
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
