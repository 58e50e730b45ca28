// How to reach the PostgreSQL database of the job store.
#ifndef QPRUNER_SERVER_STORE_POSTGRES_OPTIONS_H_
#define QPRUNER_SERVER_STORE_POSTGRES_OPTIONS_H_

#include <string>

#include "absl/time/time.h"

namespace qpruner::server {

struct PostgresOptions {
  // A connection URI (postgresql://user@host:5432/database?sslmode=verify-full) or libpq's
  // "key=value" form. It must not hold the password: it is shown in errors and process lists.
  std::string url;
  // Empty: none, or what libpq finds (PGPASSWORD, PGPASSFILE). Never logged.
  std::string password;
  // Connections for transactions and reads: this many run at once, others wait. One more listens.
  int connection_count = 16;
  // A call waits so long for a database that cannot be reached, or for transactions that are in its
  // way (and for one lock, 5 s, at the most), then ends with UNAVAILABLE.
  absl::Duration patience = absl::Seconds(3);
  // A newer server that migrates the schema is noticed within this time, or at the next connection:
  // each look costs one call a round trip.
  absl::Duration schema_check_interval = absl::Seconds(10);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_POSTGRES_OPTIONS_H_
