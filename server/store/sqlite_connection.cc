#include "server/store/sqlite_connection.h"

#include "absl/strings/str_cat.h"

namespace qpruner::server {

SqliteStatement::~SqliteStatement() {
  if (statement_ == nullptr) return;
  // The error of a failed step was reported by Step.
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

absl::StatusOr<bool> SqliteStatement::Step() {
  switch (sqlite3_step(statement_)) {
    case SQLITE_ROW:
      return true;
    case SQLITE_DONE:
      return false;
    default:
      return connection_->Error();
  }
}

absl::Status SqliteStatement::Run() {
  for (;;) {
    absl::StatusOr<bool> row = Step();
    if (!row.ok()) return std::move(row).status();
    if (!*row) return absl::OkStatus();
  }
}

absl::string_view SqliteStatement::Bytes(int column) const {
  // In this order: asking for the blob may convert the value, and with it the size.
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return absl::string_view(static_cast<const char*>(data), static_cast<size_t>(size));
}

// Binding can fail only for want of memory or for a bad index; either shows at the step, as a
// missing value in a column that must have one.
void SqliteStatement::BindInt(int index, int64_t value) {
  sqlite3_bind_int64(statement_, index, value);
}

void SqliteStatement::BindText(int index, absl::string_view text) {
  sqlite3_bind_text64(statement_, index, text.empty() ? "" : text.data(), text.size(),
                      SQLITE_TRANSIENT, SQLITE_UTF8);
}

void SqliteStatement::BindBlob(int index, absl::string_view bytes) {
  // A null pointer would bind NULL.
  sqlite3_bind_blob64(statement_, index, bytes.empty() ? "" : bytes.data(), bytes.size(),
                      SQLITE_TRANSIENT);
}

absl::StatusOr<std::unique_ptr<SqliteConnection>> SqliteConnection::Open(const std::string& path,
                                                                         Access access,
                                                                         const std::string& vfs) {
  // A reading connection opens the file for writing too, for the shared memory of the write-ahead
  // log; query_only keeps it from changing anything.
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE |
                    (access == Access::kReadWriteCreate ? SQLITE_OPEN_CREATE : 0);
  sqlite3* database = nullptr;
  const int result =
      sqlite3_open_v2(path.c_str(), &database, flags, vfs.empty() ? nullptr : vfs.c_str());
  if (database == nullptr) return absl::ResourceExhaustedError("No memory for a SQLite connection");
  std::unique_ptr<SqliteConnection> connection(new SqliteConnection(path, database));
  if (result != SQLITE_OK) return connection->Error();
  sqlite3_busy_timeout(database, 10'000);
  // trusted_schema: a file that somebody else prepared must not run functions through its schema.
  const absl::Status status = connection->ExecuteScript(
      access == Access::kReadOnly
          ? "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; PRAGMA cache_size = -16384;"
          : "PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -65536;");
  if (!status.ok()) return status;
  return connection;
}

SqliteConnection::~SqliteConnection() {
  for (const auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(database_);
}

absl::Status SqliteConnection::ExecuteScript(const char* script) {
  if (sqlite3_exec(database_, script, nullptr, nullptr, nullptr) != SQLITE_OK) return Error();
  return absl::OkStatus();
}

absl::StatusOr<SqliteStatement> SqliteConnection::Find(absl::string_view sql) {
  auto found = statements_.find(sql);
  if (found == statements_.end()) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v3(database_, sql.data(), static_cast<int>(sql.size()),
                           SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK) {
      return Error();
    }
    found = statements_.emplace(sql, statement).first;
  }
  if (sqlite3_stmt_busy(found->second)) {
    return absl::InternalError(absl::StrCat("Statement is in use already: ", sql));
  }
  return SqliteStatement(this, found->second);
}

absl::Status SqliteConnection::Error() {
  const int code = sqlite3_extended_errcode(database_);
  const std::string what =
      absl::StrCat(sqlite3_errmsg(database_), " (SQLite code ", code, "): ", path_);
  absl::Status status;
  switch (code & 0xff) {
    case SQLITE_CONSTRAINT:
      return code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY
                 ? absl::AlreadyExistsError(absl::StrCat("Already stored: ", what))
                 : absl::InternalError(absl::StrCat("Rule of the schema violated: ", what));
    case SQLITE_FULL:
      status = absl::UnavailableError(
          absl::StrCat("No space left for the job store, free some and try again: ", what));
      break;
    case SQLITE_IOERR:
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
    case SQLITE_INTERRUPT:
    case SQLITE_NOMEM:
    case SQLITE_CANTOPEN:
    case SQLITE_ABORT:
      status = absl::UnavailableError(absl::StrCat("Job store cannot be used now: ", what));
      break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      status = absl::DataLossError(
          absl::StrCat("Job store is damaged, restore it from a backup: ", what));
      break;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      status = absl::FailedPreconditionError(
          absl::StrCat("Job store must be writable by this user: ", what));
      break;
    case SQLITE_TOOBIG:
      status = absl::InvalidArgumentError(absl::StrCat("Record too large: ", what));
      break;
    default:
      status = absl::InternalError(absl::StrCat("Job store failed: ", what));
  }
  if (failure_.ok()) failure_ = status;
  return status;
}

}  // namespace qpruner::server
