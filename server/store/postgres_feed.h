// Tells the servers on one database of each other's commits, by LISTEN and NOTIFY.
//
// A commit that itself notifies takes a lock that all such commits share, so that none could share
// a sync with another. So a job's name is announced right after the commit, on a connection of its
// own, many names in one NOTIFY. A server that is killed in between leaves its last commits untold:
// listeners look again from time to time.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_FEED_H_
#define QPRUNER_SERVER_STORE_POSTGRES_FEED_H_

#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "server/store/job_store.h"
#include "server/store/postgres_connection.h"

namespace qpruner::server {

// Thread-safe. Connects, and connects again with back-off, on a thread of its own.
class PostgresFeed {
 public:
  explicit PostgresFeed(PostgresOptions options);
  ~PostgresFeed();
  PostgresFeed(const PostgresFeed&) = delete;
  PostgresFeed& operator=(const PostgresFeed&) = delete;

  // As JobStore::SetListener.
  void SetListener(StoreListener* listener);
  // Does not block. While the connection is away, names wait, a bounded number of them.
  void Announce(const std::set<std::string>& jobs);

 private:
  void RunUntilStopped();
  // Listens and announces on one connection until it breaks or the feed stops.
  absl::Status Serve(PostgresConnection& connection);
  absl::Status AnnouncePending(PostgresConnection& connection);
  // Waits for input of `socket` (-1: none), a wake-up, or the end of the time.
  void Wait(int socket, int milliseconds);
  void Wake();
  bool stopping();
  template <typename F>
  void Tell(F f);

  const PostgresOptions options_;
  const int wake_fd_;

  std::mutex mutex_;
  std::set<std::string> pending_;  // Guarded by mutex_.
  bool stopping_ = false;          // Guarded by mutex_.

  // Held while the listener is called.
  std::mutex listener_mutex_;
  StoreListener* listener_ = nullptr;  // Guarded by listener_mutex_.

  std::thread thread_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_FEED_H_
