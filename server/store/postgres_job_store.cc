#include "server/store/postgres_job_store.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/store/postgres_connection.h"
#include "server/store/postgres_feed.h"
#include "server/store/postgres_pool.h"
#include "server/store/postgres_schema.h"
#include "server/store/postgres_transaction.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

using Failure = PostgresConnection::Failure;
using Mode = PostgresTransaction::Mode;

constexpr PostgresStatement kIdentity = {
    "identity",
    "SELECT c.system_identifier::text || '-' || d.oid::text || '-' || n.oid::text "
    "FROM pg_control_system() c, pg_database d, pg_namespace n "
    "WHERE d.datname = current_database() AND n.nspname = 'qpruner'"};
constexpr PostgresStatement kBegin = {"begin", "BEGIN"};
constexpr PostgresStatement kBeginSnapshot = {"begin_snapshot",
                                              "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"};
constexpr PostgresStatement kCommit = {"commit", "COMMIT"};
constexpr PostgresStatement kRollback = {"rollback", "ROLLBACK"};

// Longer than a server's restart or a failover's first attempts need, short against a job.
constexpr absl::Duration kRetryAfter = absl::Seconds(1);

// What callers of the API may hear of a failure of the database: it is not theirs to mend, and
// names of tables, roles, hosts and databases are not theirs to know. When to try again is.
absl::Status WithoutDetails(const absl::Status& failure) {
  switch (failure.code()) {
    case absl::StatusCode::kOk:
      return failure;
    case absl::StatusCode::kDataLoss:
      return absl::DataLossError("The job store's database is damaged; its log says more");
    case absl::StatusCode::kInternal:
      return absl::InternalError("The job store failed; the server's log says more");
    default:
      return WithRetryInfo(absl::UnavailableError("The job store is not available now; try again"),
                           kRetryAfter);
  }
}

// A transaction that collides with others so often is given up.
constexpr int kMaxConflicts = 10;

class PostgresJobStore final : public JobStore {
 public:
  explicit PostgresJobStore(PostgresOptions options)
      : options_(options), pool_(options, CheckPostgresSchema), feed_(options) {}

  absl::Status Transact(absl::FunctionRef<absl::Status(StoreTransaction&)> body) override {
    std::set<std::string> changed;
    const absl::Status status = RunAgainAfterFailure([&](PostgresConnection& connection) {
      changed.clear();
      absl::Status status = connection.Send(kBegin, {});
      {
        PostgresTransaction transaction(connection, Mode::kWrite);
        if (status.ok()) status = body(transaction);
        changed = transaction.changed_jobs();
      }
      // A body may go on after a refusal, but not hide that the database failed.
      const Failure failure = connection.failure();
      if (failure != Failure::kNone) status = connection.failure_status();
      if (!status.ok()) {
        Rollback(connection);
        return Outcome{status, failure};
      }
      const absl::StatusOr<PostgresResult> committed = connection.Run(kCommit, {});
      if (committed.ok() && committed->command() == "COMMIT") {
        return Outcome{absl::OkStatus(), Failure::kNone};
      }
      if (connection.failure() == Failure::kLost) {
        // Nobody knows whether the commit has arrived: not to be run again.
        return Outcome{connection.failure_status(), Failure::kOther};
      }
      const Failure commit_failure = connection.failure();
      Rollback(connection);
      // Without a failure: PostgreSQL rolled back instead.
      return Outcome{committed.ok() ? absl::UnavailableError("The job store has not committed")
                                    : committed.status(),
                     commit_failure};
    });
    if (status.ok() && !changed.empty()) feed_.Announce(changed);
    return status;
  }

  absl::Status Read(absl::FunctionRef<absl::Status(StoreReader&)> body) override {
    return RunAgainAfterFailure([&](PostgresConnection& connection) {
      absl::Status status = connection.Send(kBeginSnapshot, {});
      {
        PostgresTransaction reader(connection, Mode::kRead);
        if (status.ok()) status = body(reader);
      }
      const Failure failure = connection.failure();
      if (failure != Failure::kNone) status = connection.failure_status();
      // Ends the snapshot; there is nothing to commit, and nothing to wait for.
      if (failure != Failure::kNone) {
        Rollback(connection);
      } else if (connection.Send(kRollback, {}).ok()) {
        connection.SendAhead();
      }
      return Outcome{status, failure};
    });
  }

  // Of the cluster, the database in it, and the schema in that.
  absl::StatusOr<std::string> Identity() override {
    std::string identity;
    const absl::Status status = RunAgainAfterFailure([&](PostgresConnection& connection) {
      const absl::StatusOr<PostgresResult> result = connection.Run(kIdentity, {});
      if (result.ok() && result->row_count() == 1) identity = std::string(result->Bytes(0, 0));
      return Outcome{result.status(), connection.failure()};
    });
    RETURN_IF_ERROR(status);
    return absl::StrCat("postgres-", identity);
  }

  bool shared() const override { return true; }
  void SetListener(StoreListener* listener) override { feed_.SetListener(listener); }

 private:
  struct Outcome {
    absl::Status status;
    // kConflict, kLost: run it again. Others: `status` is the answer.
    Failure failure;
  };

  // Twice if a statement that was still queued fails: what follows it in the pipeline is skipped.
  static void Rollback(PostgresConnection& connection) {
    for (int i = 0; i < 2 && connection.failure() != Failure::kLost; ++i) {
      if (connection.Run(kRollback, {}).ok()) return;
    }
    connection.Abandon();
  }

  // Logs a failure of the database, unless the last one within this time was the same: every call
  // of every client may meet it. What is left is for the caller.
  absl::Status Conceal(const absl::Status& failure) {
    constexpr absl::Duration kTellAgainAfter = absl::Seconds(10);
    {
      std::lock_guard lock(told_mutex_);
      const absl::Duration now = RealClock().Monotonic();
      if (failure == told_ && now < tell_again_) return WithoutDetails(failure);
      told_ = failure;
      tell_again_ = now + kTellAgainAfter;
    }
    spdlog::error("the database failed: {}", failure.ToString());
    return WithoutDetails(failure);
  }

  template <typename Attempt>
  absl::Status RunAgainAfterFailure(Attempt attempt) {
    const absl::Duration deadline = RealClock().Monotonic() + options_.patience;
    for (int conflicts = 0;;) {
      absl::StatusOr<std::unique_ptr<PostgresConnection>> connection = pool_.Take(deadline);
      if (!connection.ok()) return Conceal(connection.status());
      const Outcome outcome = attempt(**connection);
      pool_.Return(*std::move(connection));
      switch (outcome.failure) {
        case Failure::kNone:
          // What the body itself has answered.
          return outcome.status;
        case Failure::kConflict:
          if (++conflicts >= kMaxConflicts || RealClock().Monotonic() >= deadline) {
            return Conceal(outcome.status);
          }
          // The other transaction holds its locks for milliseconds; each further time a little
          // longer, so that many do not meet again and again.
          absl::SleepFor(absl::Milliseconds(1 << std::min(conflicts, 6)));
          break;
        case Failure::kLost:
          if (RealClock().Monotonic() >= deadline) return Conceal(outcome.status);
          break;
        case Failure::kOther:
          return Conceal(outcome.status);
      }
    }
  }

  const PostgresOptions options_;
  PostgresPool pool_;
  PostgresFeed feed_;
  std::mutex told_mutex_;
  // Guarded by told_mutex_.
  absl::Status told_;
  absl::Duration tell_again_ = -absl::InfiniteDuration();
};

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> OpenPostgresJobStore(PostgresOptions options) {
  if (options.connection_count < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("connection_count must be at least 1, is ", options.connection_count));
  }
  {
    PostgresPool first(
        options, [](PostgresConnection& connection) { return MigratePostgresSchema(connection); });
    RETURN_IF_ERROR(first.Take(RealClock().Monotonic() + options.patience).status());
  }
  return std::make_unique<PostgresJobStore>(std::move(options));
}

}  // namespace qpruner::server
