#include "server/store/postgres_schema.h"

#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// The partial indexes below spell these values out.
static_assert(v1::CompressionJob::PENDING == 1 && v1::CompressionJob::RUNNING == 2 &&
              v1::CompressionJob::CANCELLING == 3);
static_assert(internal::v1::TaskRecord::QUEUED == 1 && internal::v1::TaskRecord::LEASED == 2);

// Entry i brings a schema of version i to version i + 1. An entry that has shipped never changes.
//
// As in SQLite (sqlite_schema.cc): `record` is the truth, a serialized message; the other columns
// repeat what queries select and order by. Unlike there, nothing counts jobs by state: one row that
// every transaction updates would make all of them wait for each other. Pages leave room for
// updates in place (fillfactor), which need no index entries.
constexpr const char* kMigrations[] = {
    R"sql(
CREATE TABLE jobs (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  project TEXT NOT NULL,
  job TEXT NOT NULL,
  state INTEGER NOT NULL,
  labels JSONB NOT NULL,
  record BYTEA NOT NULL,          -- qpruner.internal.v1.JobRecord
  UNIQUE (project, job)
) WITH (fillfactor = 75);
CREATE INDEX jobs_by_project ON jobs (project, id);
CREATE INDEX jobs_by_state ON jobs (state, project, id);
CREATE INDEX jobs_unfinished ON jobs (id) WHERE state IN (1, 2, 3);
CREATE INDEX jobs_by_label ON jobs USING gin (labels jsonb_path_ops);

CREATE TABLE requests (
  project TEXT NOT NULL,
  request_id TEXT NOT NULL,
  job_id BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  fingerprint TEXT NOT NULL,
  PRIMARY KEY (project, request_id)
);
CREATE INDEX requests_by_job ON requests (job_id);

CREATE TABLE tasks (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  task_id TEXT NOT NULL,
  state INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  create_time BIGINT NOT NULL,
  not_before BIGINT NOT NULL,
  lease_expire_time BIGINT NOT NULL,
  worker TEXT NOT NULL,
  record BYTEA NOT NULL,          -- qpruner.internal.v1.TaskRecord
  UNIQUE (job_id, task_id)
) WITH (fillfactor = 75);
CREATE INDEX tasks_by_state ON tasks (state);
CREATE INDEX tasks_queued ON tasks (priority DESC, create_time, id) WHERE state = 1;
CREATE INDEX tasks_by_not_before ON tasks (not_before) WHERE state = 1;
CREATE INDEX tasks_leased ON tasks (worker) WHERE state = 2;

CREATE TABLE trials (
  job_id BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  trial_index INTEGER NOT NULL,
  record BYTEA NOT NULL,          -- qpruner.v1.Trial
  PRIMARY KEY (job_id, trial_index)
);

CREATE TABLE events (
  job_id BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  sequence BIGINT NOT NULL,
  record BYTEA NOT NULL,          -- qpruner.v1.JobEvent
  PRIMARY KEY (job_id, sequence)
);

CREATE TABLE artifacts (
  job_id BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  path TEXT COLLATE "C" NOT NULL,
  sha256 TEXT NOT NULL,
  record BYTEA NOT NULL,          -- qpruner.v1.Artifact
  PRIMARY KEY (job_id, path)
);
CREATE INDEX artifacts_by_content ON artifacts (sha256);
)sql",
    // When a job's next limit strikes; 0: none does.
    R"sql(
ALTER TABLE jobs ADD COLUMN limit_time BIGINT NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_limit ON jobs (limit_time) WHERE limit_time > 0;
)sql",
    // One queue a project and memory class.
    R"sql(
ALTER TABLE tasks ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN memory_class INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET project = jobs.project FROM jobs WHERE jobs.id = tasks.job_id;
DROP INDEX tasks_queued;
CREATE INDEX tasks_queued ON tasks (project, memory_class, priority DESC, create_time, id)
  WHERE state = 1;
)sql",
    // What quotas are held against.
    R"sql(
ALTER TABLE jobs ADD COLUMN artifact_bytes BIGINT NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_artifact_bytes ON jobs (project, artifact_bytes) WHERE artifact_bytes > 0;
)sql",
};

constexpr PostgresStatement kTakeTurn = {"take_turn", "SELECT pg_advisory_xact_lock($1)"};
constexpr PostgresStatement kCountSchemas = {
    "count_schemas", "SELECT count(*) FROM pg_namespace WHERE nspname = 'qpruner'"};
constexpr PostgresStatement kCountTables = {
    "count_tables",
    "SELECT count(*), count(*) FILTER (WHERE c.relname = 'schema_version') FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'qpruner'"};
constexpr PostgresStatement kReadVersion = {"read_version", "SELECT version FROM schema_version"};
constexpr PostgresStatement kWriteVersion = {"write_version",
                                             "UPDATE schema_version SET version = $1"};
// "QPRN".
constexpr int64_t kMigrationLock = 0x5150524e;

// In the transaction, with the lock.
absl::Status Migrate(PostgresConnection& connection, int to_version) {
  ASSIGN_OR_RETURN(const PostgresResult schemas, connection.Run(kCountSchemas, {}));
  // Not CREATE IF NOT EXISTS: that needs the right to create even where there is nothing to do.
  if (schemas.Int(0, 0) == 0) RETURN_IF_ERROR(connection.ExecuteScript("CREATE SCHEMA qpruner"));
  ASSIGN_OR_RETURN(const PostgresResult tables, connection.Run(kCountTables, {}));
  if (tables.Int(0, 0) != 0 && tables.Int(0, 1) == 0) {
    return absl::FailedPreconditionError(
        "The database's schema \"qpruner\" holds tables of another program: use another database");
  }
  if (tables.Int(0, 0) == 0) {
    RETURN_IF_ERROR(
        connection.ExecuteScript("CREATE TABLE schema_version (version BIGINT NOT NULL); "
                                 "INSERT INTO schema_version VALUES (0);"));
  }
  ASSIGN_OR_RETURN(const PostgresResult stored, connection.Run(kReadVersion, {}));
  if (stored.row_count() != 1) {
    return absl::DataLossError("Table qpruner.schema_version must have one row");
  }
  const int64_t version = stored.Int(0, 0);
  if (version > kPostgresSchemaVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("The database has schema version ", version,
                     ", migrated by a newer QPruner; this one knows versions up to ",
                     kPostgresSchemaVersion, ". Run that newer version, or use another database"));
  }
  if (version >= to_version) return absl::OkStatus();
  for (int64_t from = version; from < to_version; ++from) {
    RETURN_IF_ERROR(connection.ExecuteScript(kMigrations[from]));
  }
  RETURN_IF_ERROR(connection.Run(kWriteVersion, {to_version}).status());
  spdlog::info("PostgreSQL schema migrated from version {} to {}", version, to_version);
  return absl::OkStatus();
}

}  // namespace

const int kPostgresSchemaVersion = static_cast<int>(std::size(kMigrations));

absl::Status CheckPostgresSchema(PostgresConnection& connection) {
  ASSIGN_OR_RETURN(const PostgresResult stored, connection.Run(kReadVersion, {}));
  const int64_t version = stored.row_count() == 1 ? stored.Int(0, 0) : 0;
  if (version == kPostgresSchemaVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "The database has schema version ", version, " now, and this QPruner works with ",
      kPostgresSchemaVersion, ": ",
      version > kPostgresSchemaVersion
          ? "a newer one has migrated it. Replace this server by that version"
          : "an older database was restored. Start this server anew, which migrates it"));
}

absl::Status MigratePostgresSchema(PostgresConnection& connection, int to_version) {
  // No time-outs: another server may be at work on large tables.
  RETURN_IF_ERROR(connection.ExecuteScript(
      "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;"));
  absl::Status status = connection.Run(kTakeTurn, {kMigrationLock}).status();
  if (status.ok()) status = Migrate(connection, to_version);
  if (status.ok()) return connection.ExecuteScript("COMMIT");
  connection.ExecuteScript("ROLLBACK").IgnoreError();
  return status;
}

}  // namespace qpruner::server
