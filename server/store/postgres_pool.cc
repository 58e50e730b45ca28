#include "server/store/postgres_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr absl::Duration kFirstBackoff = absl::Milliseconds(50);
constexpr absl::Duration kMaxBackoff = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresPool::Open() const {
  ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection,
                   PostgresConnection::Connect(options_));
  RETURN_IF_ERROR(check_(*connection));
  return connection;
}

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresPool::Take(absl::Duration deadline) {
  std::unique_lock lock(mutex_);
  absl::Status last = absl::UnavailableError("PostgreSQL: every connection is in use");
  for (;;) {
    const absl::Duration now = RealClock().Monotonic();
    if (!idle_.empty()) {
      std::unique_ptr<PostgresConnection> connection = std::move(idle_.back());
      idle_.pop_back();
      if (now < next_check_) return connection;
      next_check_ = now + options_.schema_check_interval;
      lock.unlock();
      if (check_(*connection).ok()) return connection;
      // Lost, or not to be used any more, and so are the others. A new one says why.
      connection->Abandon();
      Return(std::move(connection));
      lock.lock();
      // Those that are at work now are looked at when they come back.
      next_check_ = -absl::InfiniteDuration();
      continue;
    }
    const bool may_try = reachable_ || (!connecting_ && now >= next_try_);
    if (open_count_ < options_.connection_count && may_try) {
      ++open_count_;
      const bool alone = !reachable_;
      if (alone) connecting_ = true;
      lock.unlock();
      absl::StatusOr<std::unique_ptr<PostgresConnection>> connection = Open();
      lock.lock();
      if (alone) connecting_ = false;
      if (connection.ok()) {
        if (!reachable_) spdlog::info("PostgreSQL is reachable again");
        next_check_ = RealClock().Monotonic() + options_.schema_check_interval;
        reachable_ = true;
        backoff_ = absl::ZeroDuration();
        changed_.notify_all();
        return connection;
      }
      --open_count_;
      changed_.notify_all();
      last = connection.status();
      if (reachable_ && absl::IsUnavailable(last)) spdlog::warn("{}", std::string(last.message()));
      reachable_ = false;
      backoff_ = std::clamp(2 * backoff_, kFirstBackoff, kMaxBackoff);
      next_try_ = RealClock().Monotonic() + backoff_;
      if (!absl::IsUnavailable(last)) return last;
      continue;
    }
    if (now >= deadline) return last;
    const absl::Duration until =
        reachable_ || connecting_ ? deadline : std::min(deadline, next_try_);
    changed_.wait_for(lock, absl::ToChronoNanoseconds(until - now));
  }
}

void PostgresPool::Return(std::unique_ptr<PostgresConnection> connection) {
  std::vector<std::unique_ptr<PostgresConnection>> lost;
  {
    std::lock_guard lock(mutex_);
    if (connection->failure() == PostgresConnection::Failure::kLost) {
      lost.swap(idle_);
      lost.push_back(std::move(connection));
      open_count_ -= static_cast<int>(lost.size());
    } else {
      connection->ForgetFailure();
      idle_.push_back(std::move(connection));
    }
  }
  lost.empty() ? changed_.notify_one() : changed_.notify_all();
  // Closed outside of the lock.
}

}  // namespace qpruner::server
