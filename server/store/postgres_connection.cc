#include "server/store/postgres_connection.h"

#include <libpq-fe.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace qpruner::server {
namespace {

using Failure = PostgresConnection::Failure;

// Every session. A process that was stopped in the middle of a transaction must not hold its locks
// for long; a statement of ours takes milliseconds. Durable means durable, whatever the database's
// default is.
constexpr char kSessionSettings[] =
    "SET search_path TO qpruner; SET client_min_messages TO warning; "
    "SET default_transaction_isolation TO 'read committed'; "
    "SET idle_in_transaction_session_timeout TO '10s'; SET statement_timeout TO '30s'; "
    "SET lock_timeout TO '5s'; "
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off';";

// libpq's messages end in a newline and may have several lines.
std::string Clean(const char* message) {
  std::string text(absl::StripSuffix(message == nullptr ? "" : message, "\n"));
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

// Classes of SQLSTATE: the database, its machine or who administers it is the cause, and may mend
// it: the last line are rights that were taken away, and roles, schemas and tables that are gone.
bool IsUnavailable(absl::string_view sqlstate) {
  for (const char* prefix : {"08", "53", "57P", "58", "25006", "57014", "25P03",  //
                             "28", "0P", "3D", "3F", "42501", "42704", "42P01"}) {
    if (absl::StartsWith(sqlstate, prefix)) return true;
  }
  return false;
}

bool IsConflict(absl::string_view sqlstate) {
  return sqlstate == "40001" || sqlstate == "40P01" || sqlstate == "55P03";
}

// After these the server ends the session, or (25006, read-only) is no longer the one to talk to: a
// primary that lives on after a failover.
bool EndsSession(absl::string_view sqlstate) {
  return absl::StartsWith(sqlstate, "57P") || absl::StartsWith(sqlstate, "08") ||
         sqlstate == "25P03" || sqlstate == "25006";
}

absl::StatusOr<std::string> UrlPassword(const std::string& url) {
  char* error = nullptr;
  PQconninfoOption* parsed = PQconninfoParse(url.c_str(), &error);
  if (parsed == nullptr) {
    const std::string message = Clean(error);
    PQfreemem(error);
    return absl::InvalidArgumentError(absl::StrCat("The PostgreSQL URL is not one: ", message));
  }
  std::string password;
  for (const PQconninfoOption* option = parsed; option->keyword != nullptr; ++option) {
    if (absl::string_view(option->keyword) == "password" && option->val != nullptr) {
      password = option->val;
    }
  }
  PQconninfoFree(parsed);
  return password;
}

}  // namespace

PostgresParameter::PostgresParameter(int64_t number) : bytes_(absl::StrCat(number)) {}

PostgresParameter PostgresParameter::Blob(std::string bytes) {
  PostgresParameter parameter;
  parameter.bytes_ = std::move(bytes);
  parameter.is_binary_ = true;
  return parameter;
}

int PostgresResult::status() const { return PQresultStatus(result_.get()); }
const char* PostgresResult::sqlstate() const {
  return PQresultErrorField(result_.get(), PG_DIAG_SQLSTATE);
}
std::string PostgresResult::error() const { return Clean(PQresultErrorMessage(result_.get())); }
void PostgresResult::Clear(pg_result* result) { PQclear(result); }
int PostgresResult::row_count() const { return PQntuples(result_.get()); }
absl::string_view PostgresResult::Bytes(int row, int column) const {
  return {PQgetvalue(result_.get(), row, column),
          static_cast<size_t>(PQgetlength(result_.get(), row, column))};
}
int64_t PostgresResult::Int(int row, int column) const {
  // Big-endian two's complement of 2, 4 or 8 bytes.
  const absl::string_view bytes = Bytes(row, column);
  if (bytes.empty()) return 0;
  uint64_t value = static_cast<signed char>(bytes[0]) < 0 ? ~uint64_t{0} : 0;
  for (const char byte : bytes) value = value << 8 | static_cast<unsigned char>(byte);
  return static_cast<int64_t>(value);
}
int64_t PostgresResult::affected_row_count() const {
  int64_t count = 0;
  return absl::SimpleAtoi(PQcmdTuples(result_.get()), &count) ? count : 0;
}
std::string PostgresResult::command() const { return PQcmdStatus(result_.get()); }

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresConnection::Connect(
    const PostgresOptions& options) {
  ASSIGN_OR_RETURN(const std::string password, UrlPassword(options.url));
  if (!password.empty()) {
    return absl::InvalidArgumentError(
        "The PostgreSQL URL holds a password, which everybody on the machine can see in the "
        "process "
        "list: give it in a file or in the environment");
  }
  // Later ones override earlier ones: the URL overrides these defaults. They find a dead peer
  // within half a minute instead of hours.
  const char* const keywords[] = {"connect_timeout",
                                  "keepalives_idle",
                                  "keepalives_interval",
                                  "keepalives_count",
                                  "tcp_user_timeout",
                                  "application_name",
                                  "target_session_attrs",
                                  "dbname",
                                  "client_encoding",
                                  "password",
                                  nullptr};
  const char* const values[] = {
      "5",          "10",
      "5",          "3",
      "20000",      "qpruner-server",
      "read-write", options.url.c_str(),
      "UTF8",       options.password.empty() ? nullptr : options.password.c_str(),
      nullptr};
  pg_conn* raw = PQconnectdbParams(keywords, values, /*expand_dbname=*/1);
  if (raw == nullptr) return absl::UnavailableError("PostgreSQL: out of memory");
  std::unique_ptr<PostgresConnection> connection(new PostgresConnection(raw));
  if (PQstatus(raw) != CONNECTION_OK) {
    const std::string message = Clean(PQerrorMessage(raw));
    // libpq gives no SQLSTATE for a refused connection; what an operator must mend is told by its
    // words, in the language that the server speaks.
    for (const char* refusal : {"authentication failed", "does not exist", "no pg_hba.conf entry",
                                "no password supplied", "certificate verify failed"}) {
      if (absl::StrContains(message, refusal) && !absl::StrContains(message, "No such file")) {
        return absl::FailedPreconditionError(absl::StrCat("PostgreSQL refuses: ", message));
      }
    }
    return absl::UnavailableError(absl::StrCat("PostgreSQL cannot be reached: ", message));
  }
  if (PQserverVersion(raw) < 120000) {
    return absl::FailedPreconditionError(absl::StrCat(
        "PostgreSQL 12 or later is needed, the server is ", PQserverVersion(raw) / 10000));
  }
  // Warnings of the server are its log's business.
  PQsetNoticeProcessor(
      raw, [](void*, const char*) {}, nullptr);
  RETURN_IF_ERROR(connection->ExecuteScript(kSessionSettings));
  return connection;
}

PostgresConnection::~PostgresConnection() { PQfinish(connection_); }

void PostgresConnection::ForgetFailure() {
  failure_ = Failure::kNone;
  failure_status_ = absl::OkStatus();
}

absl::Status PostgresConnection::Lost() {
  failure_ = Failure::kLost;
  failure_status_ = absl::UnavailableError(
      absl::StrCat("The connection to PostgreSQL is lost: ", Clean(PQerrorMessage(connection_))));
  return failure_status_;
}

absl::Status PostgresConnection::Fail(const char* sqlstate, const std::string& message) {
  const absl::string_view state = sqlstate == nullptr ? "" : sqlstate;
  if (PQstatus(connection_) == CONNECTION_BAD || EndsSession(state)) {
    failure_ = Failure::kLost;
    failure_status_ = absl::UnavailableError(absl::StrCat("PostgreSQL: ", message));
  } else if (failure_ != Failure::kNone) {
    // The first error is the cause of the others.
  } else if (IsConflict(state)) {
    failure_ = Failure::kConflict;
    failure_status_ = absl::UnavailableError(
        absl::StrCat("Another transaction was in the way, try again: ", message));
  } else {
    failure_ = Failure::kOther;
    failure_status_ =
        absl::StartsWith(state, "XX001") || absl::StartsWith(state, "XX002")
            ? absl::DataLossError(absl::StrCat("PostgreSQL: ", message))
        : IsUnavailable(state)
            ? absl::UnavailableError(absl::StrCat("PostgreSQL: ", message))
            : absl::InternalError(absl::StrCat("PostgreSQL (", state, "): ", message));
  }
  return failure_status_;
}

absl::Status PostgresConnection::ExecuteScript(const char* sql) {
  RETURN_IF_ERROR(Drain());
  if (PQpipelineStatus(connection_) != PQ_PIPELINE_OFF && PQexitPipelineMode(connection_) != 1) {
    return Lost();
  }
  const PostgresResult result(PQexec(connection_, sql));
  if (result.status() == PGRES_COMMAND_OK || result.status() == PGRES_TUPLES_OK) {
    return absl::OkStatus();
  }
  return Fail(result.sqlstate(), result.error());
}

absl::Status PostgresConnection::Send(const PostgresStatement& statement,
                                      std::vector<PostgresParameter> parameters) {
  return Queue(statement, parameters, /*keep=*/false);
}

absl::Status PostgresConnection::SendForResult(const PostgresStatement& statement,
                                               std::vector<PostgresParameter> parameters) {
  return Queue(statement, parameters, /*keep=*/true);
}

absl::Status PostgresConnection::Queue(const PostgresStatement& statement,
                                       const std::vector<PostgresParameter>& parameters,
                                       bool keep) {
  std::vector<const char*> values;
  std::vector<int> lengths, formats;
  for (const PostgresParameter& parameter : parameters) {
    if (!parameter.is_binary() && parameter.bytes().find('\0') != std::string::npos) {
      return absl::InvalidArgumentError("PostgreSQL stores no text with a zero byte");
    }
    values.push_back(parameter.bytes().c_str());
    lengths.push_back(static_cast<int>(parameter.bytes().size()));
    formats.push_back(parameter.is_binary() ? 1 : 0);
  }
  if (PQpipelineStatus(connection_) == PQ_PIPELINE_OFF && PQenterPipelineMode(connection_) != 1) {
    return Lost();
  }
  const int count = static_cast<int>(parameters.size());
  const auto prepares_it = [&](const Queued& queued) {
    return queued.is_prepare && absl::string_view(queued.name) == statement.name;
  };
  const bool is_new = !prepared_.contains(statement.name) &&
                      std::none_of(queued_.begin(), queued_.end(), prepares_it) &&
                      std::none_of(sent_.begin(), sent_.end(), prepares_it);
  if (is_new) {
    if (PQsendPrepare(connection_, statement.name, statement.sql, 0, nullptr) != 1) return Lost();
    queued_.push_back({.name = statement.name, .is_prepare = true});
  }
  if (PQsendQueryPrepared(connection_, statement.name, count, values.data(), lengths.data(),
                          formats.data(), /*resultFormat=*/1) != 1) {
    return Lost();
  }
  queued_.push_back({.name = statement.name, .keep = keep});
  return absl::OkStatus();
}

absl::Status PostgresConnection::Receive(const std::vector<Queued>& batch,
                                         std::vector<PostgresResult>& kept) {
  bool failed = false;
  for (const Queued& item : batch) {
    PGresult* const raw = PQgetResult(connection_);
    if (raw == nullptr) return Lost();
    PostgresResult result(raw);
    switch (result.status()) {
      case PGRES_COMMAND_OK:
      case PGRES_TUPLES_OK:
        if (item.is_prepare) prepared_.insert(item.name);
        if (item.keep) kept.push_back(std::move(result));
        break;
      case PGRES_PIPELINE_ABORTED:
        failed = true;
        break;
      default:
        failed = true;
        Fail(result.sqlstate(), result.error()).IgnoreError();
        if (failure_ == Failure::kLost) return failure_status_;
    }
    // Each result is followed by a null one.
    if (PGresult* end = PQgetResult(connection_)) {
      PQclear(end);
      return Lost();
    }
  }
  const PostgresResult sync(PQgetResult(connection_));
  if (sync.status() != PGRES_PIPELINE_SYNC) return Lost();
  return failed ? failure_status_ : absl::OkStatus();
}

absl::Status PostgresConnection::Drain() {
  if (sent_.empty()) return absl::OkStatus();
  std::vector<PostgresResult> dropped;
  const std::vector<Queued> batch = std::exchange(sent_, {});
  const absl::Status received = Receive(batch, dropped);
  if (received.ok() || failure_ == Failure::kLost) return received;
  // Nobody waited for it, so nobody knows what state the session is in. And what was sent after it
  // is not to be taken for its end.
  return Lost();
}

void PostgresConnection::SendAhead() {
  if (failure_ == Failure::kLost || queued_.empty() || !Drain().ok()) return;
  if (PQpipelineSync(connection_) != 1) {
    Lost().IgnoreError();
    return;
  }
  sent_ = std::exchange(queued_, {});
}

absl::StatusOr<std::vector<PostgresResult>> PostgresConnection::Flush() {
  std::vector<PostgresResult> kept;
  if (failure_ == Failure::kLost) return failure_status_;
  if (queued_.empty()) return kept;
  const std::vector<Queued> batch = std::exchange(queued_, {});
  if (PQpipelineSync(connection_) != 1) return Lost();
  RETURN_IF_ERROR(Drain());
  RETURN_IF_ERROR(Receive(batch, kept));
  return kept;
}

absl::StatusOr<PostgresResult> PostgresConnection::Run(const PostgresStatement& statement,
                                                       std::vector<PostgresParameter> parameters) {
  RETURN_IF_ERROR(SendForResult(statement, std::move(parameters)));
  ASSIGN_OR_RETURN(std::vector<PostgresResult> results, Flush());
  return std::move(results.back());
}

int PostgresConnection::socket() const { return PQsocket(connection_); }

absl::Status PostgresConnection::ConsumeInput() {
  return PQconsumeInput(connection_) == 1 ? absl::OkStatus() : Lost();
}

std::optional<std::string> PostgresConnection::NextNotification() {
  while (PGnotify* notification = PQnotifies(connection_)) {
    std::optional<std::string> payload;
    if (notification->be_pid != PQbackendPID(connection_)) payload = notification->extra;
    PQfreemem(notification);
    if (payload) return payload;
  }
  return std::nullopt;
}

}  // namespace qpruner::server
