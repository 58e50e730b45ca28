// The connections of a PostgreSQL job store.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_POOL_H_
#define QPRUNER_SERVER_STORE_POSTGRES_POOL_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/store/postgres_connection.h"
#include "server/store/postgres_options.h"

namespace qpruner::server {

// Thread-safe.
class PostgresPool {
 public:
  using Check = absl::Status (*)(PostgresConnection&);
  // `check` says whether the database still is one to work with. It is asked of each new connection
  // and, every schema_check_interval, of one that was idle.
  PostgresPool(PostgresOptions options, Check check)
      : options_(std::move(options)), check_(check) {}

  // A connection for the caller alone: an idle one, else a new one, else the next that is given
  // back. While the database cannot be reached or refuses, one caller at a time tries, with
  // back-off. Blocks. UNAVAILABLE: not until `deadline`, by RealClock().Monotonic(). Other errors:
  // as Connect, or the check's.
  absl::StatusOr<std::unique_ptr<PostgresConnection>> Take(absl::Duration deadline);
  // Every connection that was taken comes back. When one is lost, the idle ones are too: they
  // broke with the server.
  void Return(std::unique_ptr<PostgresConnection> connection);

 private:
  // Connect, and the check.
  absl::StatusOr<std::unique_ptr<PostgresConnection>> Open() const;

  const PostgresOptions options_;
  const Check check_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // All guarded by mutex_.
  std::vector<std::unique_ptr<PostgresConnection>> idle_;
  int open_count_ = 0;  // Idle, taken, and being connected.
  bool reachable_ = true;
  bool connecting_ = false;  // Someone tries, while not reachable.
  absl::Duration backoff_;
  // Monotonic.
  absl::Duration next_try_ = -absl::InfiniteDuration();
  absl::Duration next_check_ = -absl::InfiniteDuration();
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_POOL_H_
