// The tables of the PostgreSQL job store, and how databases of older versions become current.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_SCHEMA_H_
#define QPRUNER_SERVER_STORE_POSTGRES_SCHEMA_H_

#include "absl/status/status.h"
#include "server/store/postgres_connection.h"

namespace qpruner::server {

// Of the newest schema (table schema_version).
extern const int kPostgresSchemaVersion;

// Brings schema "qpruner" of the database to the newest version, in one transaction under an
// advisory lock: of servers that start together one migrates, the others wait and find it done.
// `to_version`: an older one, as a test may want.
// FAILED_PRECONDITION: a newer QPruner has migrated it, or it is another program's.
absl::Status MigratePostgresSchema(PostgresConnection& connection,
                                   int to_version = kPostgresSchemaVersion);

// FAILED_PRECONDITION: it has another version than this program's, which must touch nothing then.
absl::Status CheckPostgresSchema(PostgresConnection& connection);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_SCHEMA_H_
