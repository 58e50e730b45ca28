// The JobStore of several servers: a PostgreSQL database.
//
// Calls run on a pool of connections, one transaction each; PostgreSQL itself lets concurrent
// commits share a sync. A transaction that collides with another is run again, one whose connection
// broke before its commit was sent as well, on a new connection.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_JOB_STORE_H_
#define QPRUNER_SERVER_STORE_POSTGRES_JOB_STORE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "server/store/job_store.h"
#include "server/store/postgres_options.h"

namespace qpruner::server {

// Migrates the schema first. FAILED_PRECONDITION: a newer QPruner has migrated it, it is another
// program's, or the database refuses (authentication, rights). INVALID_ARGUMENT: the URL is bad or
// holds a password. UNAVAILABLE: the database cannot be reached within `patience`.
absl::StatusOr<std::unique_ptr<JobStore>> OpenPostgresJobStore(PostgresOptions options);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_JOB_STORE_H_
