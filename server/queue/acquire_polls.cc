#include "server/queue/acquire_polls.h"

#include <utility>

namespace qpruner::server {

int64_t AcquirePolls::NewId() {
  absl::MutexLock lock(&mutex_);
  return ++last_id_;
}

template <typename Condition>
std::vector<AcquirePoll> AcquirePolls::TakeIf(Condition condition) {
  std::vector<AcquirePoll> taken;
  for (auto it = polls_.begin(); it != polls_.end();) {
    if (!condition(*it)) {
      ++it;
      continue;
    }
    taken.push_back(std::move(*it));
    it = polls_.erase(it);
  }
  return taken;
}

bool AcquirePolls::Add(AcquirePoll& poll, std::optional<AcquirePoll>& older) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return false;
  std::vector<AcquirePoll> earlier =
      TakeIf([&](const AcquirePoll& other) { return other.worker == poll.worker; });
  if (!earlier.empty()) older = std::move(earlier.front());
  polls_.push_back(std::move(poll));
  return true;
}

std::vector<AcquirePoll> AcquirePolls::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<AcquirePoll> list;
  list.reserve(polls_.size());
  for (const AcquirePoll& poll : polls_) {
    list.push_back(
        {poll.id, poll.worker, poll.incarnation, poll.prepared_job, poll.deadline, nullptr});
  }
  return list;
}

std::optional<AcquirePoll> AcquirePolls::Take(int64_t id) {
  absl::MutexLock lock(&mutex_);
  std::vector<AcquirePoll> taken = TakeIf([&](const AcquirePoll& poll) { return poll.id == id; });
  if (taken.empty()) return std::nullopt;
  return std::move(taken.front());
}

std::vector<AcquirePoll> AcquirePolls::TakeExpired(absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  return TakeIf([&](const AcquirePoll& poll) { return poll.deadline <= now; });
}

std::vector<AcquirePoll> AcquirePolls::TakeOfOtherProcesses(const std::string& worker,
                                                            const std::string& incarnation) {
  absl::MutexLock lock(&mutex_);
  return TakeIf([&](const AcquirePoll& poll) {
    return poll.worker == worker && poll.incarnation != incarnation;
  });
}

std::vector<AcquirePoll> AcquirePolls::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  return TakeIf([](const AcquirePoll&) { return true; });
}

bool AcquirePolls::empty() const {
  absl::MutexLock lock(&mutex_);
  return polls_.empty();
}

bool AcquirePolls::closed() const {
  absl::MutexLock lock(&mutex_);
  return closed_;
}

std::optional<absl::Duration> AcquirePolls::NextDeadline() const {
  absl::MutexLock lock(&mutex_);
  std::optional<absl::Duration> next;
  for (const AcquirePoll& poll : polls_) {
    if (!next || poll.deadline < *next) next = poll.deadline;
  }
  return next;
}

}  // namespace qpruner::server
