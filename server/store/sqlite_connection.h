// One SQLite connection: cached prepared statements, typed binding, errors as absl::Status.
//
// All SQL text is constant or put together from constant parts; values only ever travel as bound
// parameters.
#ifndef QPRUNER_SERVER_STORE_SQLITE_CONNECTION_H_
#define QPRUNER_SERVER_STORE_SQLITE_CONNECTION_H_

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::server {

// Marks bytes that are bound as a BLOB; other strings are bound as TEXT.
struct SqliteBlob {
  absl::string_view bytes;
};

class SqliteConnection;

// A statement borrowed from its connection's cache, with its parameters bound; handed back, reset,
// when destroyed. Columns count from 0 and are valid until the next Step.
class SqliteStatement {
 public:
  SqliteStatement(SqliteStatement&& other) noexcept
      : connection_(other.connection_), statement_(std::exchange(other.statement_, nullptr)) {}
  SqliteStatement& operator=(SqliteStatement&&) = delete;
  ~SqliteStatement();

  // True: there is a row. False: the end.
  absl::StatusOr<bool> Step();
  // Steps to the end.
  absl::Status Run();

  int64_t Int(int column) const { return sqlite3_column_int64(statement_, column); }
  bool IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
  // Text or blob.
  absl::string_view Bytes(int column) const;

  // Parameters count from 1 and are copied. Prepare binds; this is for statements whose number of
  // parameters is known only at run time.
  template <typename T>
  void Bind(int index, const T& value) {
    if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
      BindInt(index, static_cast<int64_t>(value));
    } else if constexpr (std::is_same_v<T, SqliteBlob>) {
      BindBlob(index, value.bytes);
    } else {
      BindText(index, value);
    }
  }

 private:
  friend class SqliteConnection;
  SqliteStatement(SqliteConnection* connection, sqlite3_stmt* statement)
      : connection_(connection), statement_(statement) {}
  void BindInt(int index, int64_t value);
  void BindText(int index, absl::string_view text);
  void BindBlob(int index, absl::string_view bytes);

  SqliteConnection* connection_;
  sqlite3_stmt* statement_;
};

// Used by one thread at a time.
class SqliteConnection {
 public:
  enum class Access { kReadWriteCreate, kReadOnly };
  // `vfs`: name of a registered SQLite VFS; empty for the default.
  static absl::StatusOr<std::unique_ptr<SqliteConnection>> Open(const std::string& path,
                                                                Access access,
                                                                const std::string& vfs);
  ~SqliteConnection();
  SqliteConnection(const SqliteConnection&) = delete;
  SqliteConnection& operator=(const SqliteConnection&) = delete;

  // Runs a constant script of any number of statements without parameters.
  absl::Status ExecuteScript(const char* script);

  // `arguments` are bound to ?1, ?2, ... and copied.
  template <typename... Arguments>
  absl::StatusOr<SqliteStatement> Prepare(absl::string_view sql, const Arguments&... arguments) {
    absl::StatusOr<SqliteStatement> statement = Find(sql);
    if (statement.ok()) {
      [[maybe_unused]] int index = 0;
      (statement->Bind(++index, arguments), ...);
    }
    return statement;
  }
  // Prepares, binds and runs to the end.
  template <typename... Arguments>
  absl::Status Run(absl::string_view sql, const Arguments&... arguments) {
    absl::StatusOr<SqliteStatement> statement = Prepare(sql, arguments...);
    if (!statement.ok()) return std::move(statement).status();
    return statement->Run();
  }

  int64_t last_insert_id() const { return sqlite3_last_insert_rowid(database_); }
  // Rows that the last INSERT, UPDATE or DELETE touched.
  int64_t changed_row_count() const { return sqlite3_changes64(database_); }
  // False after SQLite rolled a transaction back on its own (disk full, input/output error).
  bool in_transaction() const { return sqlite3_get_autocommit(database_) == 0; }

  // The first error since ForgetFailure that was not a violated constraint: the file or the disk is
  // at fault, and a transaction that met it must not be committed whatever its body made of it.
  const absl::Status& failure() const { return failure_; }
  void ForgetFailure() { failure_ = absl::OkStatus(); }

  sqlite3* handle() { return database_; }

 private:
  friend class SqliteStatement;
  SqliteConnection(std::string path, sqlite3* database)
      : path_(std::move(path)), database_(database) {}
  absl::StatusOr<SqliteStatement> Find(absl::string_view sql);
  // The status of the call that just failed.
  absl::Status Error();

  const std::string path_;
  sqlite3* const database_;
  absl::flat_hash_map<std::string, sqlite3_stmt*> statements_;
  absl::Status failure_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_SQLITE_CONNECTION_H_
