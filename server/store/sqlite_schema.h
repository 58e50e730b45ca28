// The tables of the SQLite job store, and how files of older versions become current.
#ifndef QPRUNER_SERVER_STORE_SQLITE_SCHEMA_H_
#define QPRUNER_SERVER_STORE_SQLITE_SCHEMA_H_

#include "absl/status/status.h"
#include "server/store/sqlite_connection.h"

namespace qpruner::server {

// "QPRN" in the file's header (PRAGMA application_id).
inline constexpr int kSqliteApplicationId = 0x5150524e;
// Of the newest schema (PRAGMA user_version).
extern const int kSqliteSchemaVersion;

// Brings the file to the newest schema, one transaction a version. `to_version`: an older one, as a
// test may want. FAILED_PRECONDITION: a newer QPruner wrote it, or it is another program's.
absl::Status MigrateSqliteSchema(SqliteConnection& connection,
                                 int to_version = kSqliteSchemaVersion);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_SQLITE_SCHEMA_H_
