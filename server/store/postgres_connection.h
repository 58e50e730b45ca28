// One connection to PostgreSQL: prepared statements with bound parameters, sent in pipelines.
//
// Statements that nobody waits for are queued and travel with the next one that somebody does wait
// for, so that a transaction costs a few round trips instead of one per statement.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_CONNECTION_H_
#define QPRUNER_SERVER_STORE_POSTGRES_CONNECTION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/store/postgres_options.h"

struct pg_conn;
struct pg_result;

namespace qpruner::server {

// A statement of the program's own, prepared once a connection. Never made of values.
struct PostgresStatement {
  const char* name;
  const char* sql;
};

// A bound parameter.
class PostgresParameter {
 public:
  PostgresParameter(absl::string_view text) : bytes_(text) {}   // NOLINT: implicit as in a call.
  PostgresParameter(const std::string& text) : bytes_(text) {}  // NOLINT
  PostgresParameter(const char* text) : bytes_(text) {}         // NOLINT
  PostgresParameter(int64_t number);                            // NOLINT
  PostgresParameter(int number) : PostgresParameter(int64_t{number}) {}  // NOLINT
  // bytea.
  static PostgresParameter Blob(std::string bytes);

  const std::string& bytes() const { return bytes_; }
  bool is_binary() const { return is_binary_; }

 private:
  PostgresParameter() = default;
  std::string bytes_;
  bool is_binary_ = false;
};

// Rows, in binary form.
class PostgresResult {
 public:
  explicit PostgresResult(pg_result* result) : result_(result, &Clear) {}
  int row_count() const;
  // Of a bigint or int column; NULL reads as 0.
  int64_t Int(int row, int column) const;
  // Of a text or bytea column. Valid as long as the result.
  absl::string_view Bytes(int row, int column) const;
  // Rows that an INSERT, UPDATE or DELETE changed.
  int64_t affected_row_count() const;
  // "COMMIT", "ROLLBACK", ...
  std::string command() const;
  // ExecStatusType of libpq, and for errors the SQLSTATE (null if there is none) and the message.
  int status() const;
  const char* sqlstate() const;
  std::string error() const;

 private:
  static void Clear(pg_result* result);
  std::unique_ptr<pg_result, void (*)(pg_result*)> result_;
};

// Used by one thread at a time.
class PostgresConnection {
 public:
  // The worst that has happened since ForgetFailure().
  enum class Failure {
    kNone,
    // Another transaction was in the way (serialization, deadlock, lock time-out): run it again.
    kConflict,
    // The connection is lost, or the database is shutting down: connect again.
    kLost,
    kOther,
  };

  // UNAVAILABLE: the server cannot be reached, or is starting or stopping. FAILED_PRECONDITION: it
  // refuses (authentication, no such database). INVALID_ARGUMENT: the URL is bad.
  static absl::StatusOr<std::unique_ptr<PostgresConnection>> Connect(
      const PostgresOptions& options);
  ~PostgresConnection();
  PostgresConnection(const PostgresConnection&) = delete;
  PostgresConnection& operator=(const PostgresConnection&) = delete;

  // Queues a statement; its error comes from the next Run or Flush. INVALID_ARGUMENT comes at once:
  // a text holds a zero byte.
  absl::Status Send(const PostgresStatement& statement, std::vector<PostgresParameter> parameters);
  // The same, and the next Flush returns its result.
  absl::Status SendForResult(const PostgresStatement& statement,
                             std::vector<PostgresParameter> parameters);
  // Sends what is queued and waits. The kept results, in order.
  absl::StatusOr<std::vector<PostgresResult>> Flush();
  // Sends what is queued without waiting. Kept results are dropped. An error costs the connection,
  // as the next call finds.
  void SendAhead();
  // SendForResult and Flush; the last result.
  absl::StatusOr<PostgresResult> Run(const PostgresStatement& statement,
                                     std::vector<PostgresParameter> parameters);
  // Runs constant SQL, several statements at once. Nothing may be queued.
  absl::Status ExecuteScript(const char* sql);

  Failure failure() const { return failure_; }
  // The status that goes with it.
  const absl::Status& failure_status() const { return failure_status_; }
  void ForgetFailure();
  // It is in no state to be used again.
  void Abandon() { failure_ = Failure::kLost; }

  // The socket, for poll(2).
  int socket() const;
  // Reads what has come without waiting. UNAVAILABLE: the connection is lost.
  absl::Status ConsumeInput();
  // A NOTIFY of another session that has come, if any.
  std::optional<std::string> NextNotification();

 private:
  struct Queued {
    const char* name;
    bool is_prepare = false;
    bool keep = false;
  };
  explicit PostgresConnection(pg_conn* connection) : connection_(connection) {}
  absl::Status Queue(const PostgresStatement& statement,
                     const std::vector<PostgresParameter>& parameters, bool keep);
  // Reads the results of a batch that was sent, up to its end.
  absl::Status Receive(const std::vector<Queued>& batch, std::vector<PostgresResult>& kept);
  // Reads those of SendAhead.
  absl::Status Drain();
  absl::Status Fail(const char* sqlstate, const std::string& message);
  absl::Status Lost();

  pg_conn* const connection_;
  std::set<std::string> prepared_;
  std::vector<Queued> queued_;
  // Sent ahead, not received.
  std::vector<Queued> sent_;
  Failure failure_ = Failure::kNone;
  absl::Status failure_status_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_CONNECTION_H_
