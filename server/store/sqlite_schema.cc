#include "server/store/sqlite_schema.h"

#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner::server {
namespace {

// The partial indexes below spell these values out.
static_assert(v1::CompressionJob::PENDING == 1 && v1::CompressionJob::RUNNING == 2 &&
              v1::CompressionJob::CANCELLING == 3);
static_assert(internal::v1::TaskRecord::QUEUED == 1 && internal::v1::TaskRecord::LEASED == 2);

// Entry i brings a file of version i to version i + 1. An entry that has shipped never changes.
//
// `record` is the truth, a serialized message; the other columns repeat what queries select and
// order by. Times are nanoseconds since 1970. Job ids grow with creation and are never used again,
// so that a page token stays good when jobs are deleted.
constexpr const char* kMigrations[] = {
    R"sql(
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project TEXT NOT NULL,
  job TEXT NOT NULL,
  state INTEGER NOT NULL,
  record BLOB NOT NULL,           -- qpruner.internal.v1.JobRecord
  UNIQUE (project, job)
) STRICT;
CREATE INDEX jobs_by_project ON jobs (project, id);
CREATE INDEX jobs_by_state ON jobs (project, state, id);
CREATE INDEX jobs_unfinished ON jobs (id) WHERE state IN (1, 2, 3);

CREATE TABLE job_labels (
  job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  project TEXT NOT NULL,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (job_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_labels_by_value ON job_labels (project, key, value, job_id);

CREATE TABLE requests (
  project TEXT NOT NULL,
  request_id TEXT NOT NULL,
  job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  fingerprint TEXT NOT NULL,
  PRIMARY KEY (project, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_job ON requests (job_id);

CREATE TABLE tasks (
  id INTEGER PRIMARY KEY,
  job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  task_id TEXT NOT NULL,
  state INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  not_before INTEGER NOT NULL,
  lease_expire_time INTEGER NOT NULL,
  record BLOB NOT NULL,           -- qpruner.internal.v1.TaskRecord
  UNIQUE (job_id, task_id)
) STRICT;
CREATE INDEX tasks_queued ON tasks (priority DESC, create_time, id, not_before) WHERE state = 1;
CREATE INDEX tasks_by_not_before ON tasks (not_before) WHERE state = 1;
CREATE INDEX tasks_leased ON tasks (lease_expire_time, id) WHERE state = 2;

CREATE TABLE trials (
  job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  trial_index INTEGER NOT NULL,
  record BLOB NOT NULL,           -- qpruner.v1.Trial
  PRIMARY KEY (job_id, trial_index)
) STRICT;

CREATE TABLE events (
  job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  record BLOB NOT NULL,           -- qpruner.v1.JobEvent
  PRIMARY KEY (job_id, sequence)
) STRICT;

CREATE TABLE artifacts (
  job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  path TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  record BLOB NOT NULL,           -- qpruner.v1.Artifact
  PRIMARY KEY (job_id, path)
) STRICT;
CREATE INDEX artifacts_by_content ON artifacts (sha256);

-- How many jobs and tasks are in each state, kept by the triggers below: counting millions of rows
-- for every look at the metrics would not do.
CREATE TABLE job_counts (state INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE TRIGGER job_inserted AFTER INSERT ON jobs BEGIN
  INSERT INTO job_counts VALUES (new.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER job_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
  UPDATE job_counts SET count = count - 1 WHERE state = old.state;
  INSERT INTO job_counts VALUES (new.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER job_deleted AFTER DELETE ON jobs BEGIN
  UPDATE job_counts SET count = count - 1 WHERE state = old.state;
END;
CREATE TABLE task_counts (state INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE TRIGGER task_inserted AFTER INSERT ON tasks BEGIN
  INSERT INTO task_counts VALUES (new.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER task_moved AFTER UPDATE OF state ON tasks WHEN old.state <> new.state BEGIN
  UPDATE task_counts SET count = count - 1 WHERE state = old.state;
  INSERT INTO task_counts VALUES (new.state, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER task_deleted AFTER DELETE ON tasks BEGIN
  UPDATE task_counts SET count = count - 1 WHERE state = old.state;
END;
)sql",
    // When a job's next limit strikes; 0: none does.
    R"sql(
ALTER TABLE jobs ADD COLUMN limit_time INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_limit ON jobs (limit_time) WHERE limit_time > 0;
)sql",
    // One queue a project and memory class.
    R"sql(
ALTER TABLE tasks ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN memory_class INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET project = (SELECT project FROM jobs WHERE jobs.id = tasks.job_id);
DROP INDEX tasks_queued;
CREATE INDEX tasks_queued ON tasks
  (project, memory_class, priority DESC, create_time, id, not_before) WHERE state = 1;
)sql",
    // What quotas are held against.
    R"sql(
ALTER TABLE jobs ADD COLUMN artifact_bytes INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_by_artifact_bytes ON jobs (project, artifact_bytes) WHERE artifact_bytes > 0;
)sql",
};

absl::StatusOr<int64_t> QueryNumber(SqliteConnection& connection, absl::string_view sql) {
  ASSIGN_OR_RETURN(SqliteStatement statement, connection.Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

absl::Status ApplyMigration(SqliteConnection& connection, int version) {
  RETURN_IF_ERROR(connection.ExecuteScript("BEGIN IMMEDIATE"));
  // PRAGMA takes no parameters; these are numbers of ours.
  const std::string stamp = absl::StrCat("PRAGMA application_id = ", kSqliteApplicationId,
                                         "; PRAGMA user_version = ", version + 1, "; COMMIT;");
  absl::Status status = connection.ExecuteScript(kMigrations[version]);
  if (status.ok()) status = connection.ExecuteScript(stamp.c_str());
  if (!status.ok() && connection.in_transaction()) {
    connection.ExecuteScript("ROLLBACK").IgnoreError();
  }
  return status;
}

}  // namespace

const int kSqliteSchemaVersion = static_cast<int>(std::size(kMigrations));

absl::Status MigrateSqliteSchema(SqliteConnection& connection, int to_version) {
  ASSIGN_OR_RETURN(const int64_t version, QueryNumber(connection, "PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t application, QueryNumber(connection, "PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t tables,
                   QueryNumber(connection, "SELECT count(*) FROM sqlite_schema"));
  const bool empty = version == 0 && application == 0 && tables == 0;
  if (!empty && application != kSqliteApplicationId) {
    return absl::FailedPreconditionError("The file is a database of another program");
  }
  if (version > kSqliteSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "The file has schema version ", version,
        ", written by a newer QPruner; this one knows "
        "versions up to ",
        kSqliteSchemaVersion, ". Run that newer version, or start with another data folder"));
  }
  for (int from = static_cast<int>(version); from < to_version; ++from) {
    RETURN_IF_ERROR(ApplyMigration(connection, from));
  }
  return absl::OkStatus();
}

}  // namespace qpruner::server
