#include "server/store/postgres_feed.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr char kListen[] = "LISTEN qpruner_jobs";
constexpr PostgresStatement kNotify = {"notify", "SELECT pg_notify('qpruner_jobs', $1)"};
// PostgreSQL refuses payloads of 8,000 bytes and more.
constexpr size_t kMaxPayload = 7900;
// Beyond it, listeners find out when they look again.
constexpr size_t kMaxPending = 100'000;
constexpr int kFirstBackoffMs = 50;
constexpr int kMaxBackoffMs = 2000;
// A dead peer is found by TCP's keepalive (postgres_connection.cc), which wakes poll(2).
constexpr int kUntilWoken = -1;

}  // namespace

PostgresFeed::PostgresFeed(PostgresOptions options)
    : options_(std::move(options)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { RunUntilStopped(); });
}

PostgresFeed::~PostgresFeed() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
  close(wake_fd_);
}

void PostgresFeed::SetListener(StoreListener* listener) {
  std::lock_guard lock(listener_mutex_);
  listener_ = listener;
  if (listener_ != nullptr) listener_->OnChangesMissed();
}

void PostgresFeed::Announce(const std::set<std::string>& jobs) {
  {
    std::lock_guard lock(mutex_);
    if (pending_.size() < kMaxPending) pending_.insert(jobs.begin(), jobs.end());
  }
  Wake();
}

void PostgresFeed::Wake() {
  const uint64_t one = 1;
  // A counter that is full is awake already.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
}

bool PostgresFeed::stopping() {
  std::lock_guard lock(mutex_);
  return stopping_;
}

template <typename F>
void PostgresFeed::Tell(F f) {
  std::lock_guard lock(listener_mutex_);
  if (listener_ != nullptr) f(*listener_);
}

void PostgresFeed::Wait(int socket, int milliseconds) {
  pollfd fds[] = {{wake_fd_, POLLIN, 0}, {socket, POLLIN, 0}};
  poll(fds, socket < 0 ? 1 : 2, milliseconds);
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t drained = read(wake_fd_, &count, sizeof(count));
}

void PostgresFeed::RunUntilStopped() {
  int backoff = kFirstBackoffMs;
  while (!stopping()) {
    absl::StatusOr<std::unique_ptr<PostgresConnection>> connection =
        PostgresConnection::Connect(options_);
    absl::Status status = connection.status();
    if (status.ok()) {
      backoff = kFirstBackoffMs;
      status = Serve(**connection);
    }
    if (status.ok()) continue;  // Stopping.
    spdlog::warn("changes of other servers are not heard, will connect again: {}",
                 std::string(status.message()));
    // Announcements wake it too: they must not shorten the wait.
    const absl::Duration until = RealClock().Monotonic() + absl::Milliseconds(backoff);
    while (!stopping()) {
      const absl::Duration left = until - RealClock().Monotonic();
      if (left <= absl::ZeroDuration()) break;
      Wait(-1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    }
    backoff = std::min(2 * backoff, kMaxBackoffMs);
  }
}

absl::Status PostgresFeed::Serve(PostgresConnection& connection) {
  RETURN_IF_ERROR(connection.ExecuteScript(kListen));
  // Whatever was committed before is in the store by now, and what comes after will be told.
  Tell([](StoreListener& listener) { listener.OnChangesMissed(); });
  while (!stopping()) {
    RETURN_IF_ERROR(AnnouncePending(connection));
    RETURN_IF_ERROR(connection.ConsumeInput());
    while (const std::optional<std::string> payload = connection.NextNotification()) {
      for (const auto job : absl::StrSplit(*payload, '\n')) {
        Tell([&](StoreListener& listener) { listener.OnJobChanged(std::string(job)); });
      }
    }
    {
      std::lock_guard lock(mutex_);
      if (!pending_.empty()) continue;
    }
    Wait(connection.socket(), kUntilWoken);
  }
  return absl::OkStatus();
}

absl::Status PostgresFeed::AnnouncePending(PostgresConnection& connection) {
  std::set<std::string> jobs;
  {
    std::lock_guard lock(mutex_);
    jobs.swap(pending_);
  }
  std::vector<std::string> payloads;
  for (const std::string& job : jobs) {
    if (payloads.empty() || payloads.back().size() + 1 + job.size() > kMaxPayload) {
      payloads.push_back(job);
    } else {
      payloads.back().append("\n").append(job);
    }
  }
  absl::Status status;
  for (const std::string& payload : payloads) {
    if (status.ok()) status = connection.Send(kNotify, {payload});
  }
  if (status.ok()) status = connection.Flush().status();
  if (!status.ok()) Announce(jobs);  // On the next connection.
  return status;
}

}  // namespace qpruner::server
