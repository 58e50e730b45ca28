#include "server/store/sqlite_transaction.h"

#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "server/store/damaged_rows.h"
#include "server/store/page_token.h"
#include "server/store/stored_record.h"

namespace qpruner::server {
namespace {

using internal::v1::JobRecord;
using internal::v1::TaskRecord;

// LIMIT of SQL for "0: all".
int64_t SqlLimit(int limit) { return limit <= 0 ? -1 : limit; }

// All rows of one job; the record is column 0.
template <typename Message>
absl::StatusOr<std::vector<Message>> ParseRows(absl::string_view table, int64_t job_id,
                                               absl::StatusOr<SqliteStatement> statement) {
  if (!statement.ok()) return std::move(statement).status();
  std::vector<Message> messages;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, statement->Step());
    if (!row) return messages;
    const absl::Status parsed = ParseRecord(statement->Bytes(0), messages.emplace_back());
    if (!parsed.ok()) ReportDamagedRowOf(table, job_id, parsed);
    RETURN_IF_ERROR(parsed);
  }
}

// The same, of tasks of many jobs: (record, id). Until there are `limit`, if that is not 0.
absl::StatusOr<std::vector<TaskRecord>> ParseUndamagedTasks(
    absl::StatusOr<SqliteStatement> statement, int limit = 0) {
  if (!statement.ok()) return std::move(statement).status();
  std::vector<TaskRecord> tasks;
  while (limit <= 0 || tasks.size() < static_cast<size_t>(limit)) {
    ASSIGN_OR_RETURN(const bool row, statement->Step());
    if (!row) break;
    AppendUnlessDamaged(statement->Bytes(0), "tasks", statement->Int(1), tasks, &ParseTask);
  }
  return tasks;
}

// All rows of (project, job).
absl::StatusOr<std::vector<JobName>> ReadNames(absl::StatusOr<SqliteStatement> statement) {
  if (!statement.ok()) return std::move(statement).status();
  std::vector<JobName> names;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, statement->Step());
    if (!row) return names;
    names.push_back({std::string(statement->Bytes(0)), std::string(statement->Bytes(1))});
  }
}

}  // namespace

absl::StatusOr<int64_t> SqliteTransaction::FindJobId(const JobName& name) {
  if (known_job_id_ != 0 && known_job_.job == name.job && known_job_.project == name.project) {
    return known_job_id_;
  }
  ASSIGN_OR_RETURN(SqliteStatement statement,
                   connection_.Prepare("SELECT id FROM jobs WHERE project = ?1 AND job = ?2",
                                       name.project, name.job));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return JobNotStored(name);
  known_job_ = name;
  known_job_id_ = statement.Int(0);
  return known_job_id_;
}

absl::StatusOr<JobRecord> SqliteTransaction::GetJob(const JobName& name) {
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT record, id FROM jobs WHERE project = ?1 AND job = ?2",
                          name.project, name.job));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return JobNotStored(name);
  JobRecord record;
  const absl::Status parsed = ParseJob(statement.Bytes(0), name, record);
  if (!parsed.ok()) ReportDamagedRow("jobs", statement.Int(1), parsed);
  RETURN_IF_ERROR(parsed);
  return record;
}

absl::StatusOr<v1::CompressionJob> SqliteTransaction::ShowJob(const JobName& name) {
  ASSIGN_OR_RETURN(SqliteStatement statement,
                   connection_.Prepare("SELECT record FROM jobs WHERE project = ?1 AND job = ?2",
                                       name.project, name.job));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return JobNotStored(name);
  v1::CompressionJob job;
  RETURN_IF_ERROR(ParseShownJob(statement.Bytes(0), job));
  return job;
}

std::string ListJobsSql(size_t state_count, size_t label_count) {
  const auto parameter = [](size_t number) { return absl::StrCat("?", number); };
  constexpr size_t kFirstState = 4;
  // Walks indexes from the newest job down. That of the first label, whose entries are few:
  if (label_count > 0) {
    const size_t first_label = kFirstState + state_count;
    std::string sql = absl::StrCat(
        "SELECT j.record, j.id FROM job_labels l CROSS JOIN jobs j ON j.id = l.job_id "
        "WHERE l.project = ?1 AND l.job_id < ?2 AND l.key = ?",
        first_label, " AND l.value = ?", first_label + 1);
    for (size_t i = 1; i < label_count; ++i) {
      absl::StrAppend(&sql,
                      " AND EXISTS (SELECT 1 FROM job_labels m WHERE m.job_id = l.job_id AND "
                      "m.key = ?",
                      first_label + 2 * i, " AND m.value = ?", first_label + 2 * i + 1, ")");
    }
    for (size_t i = 0; i < state_count; ++i) {
      absl::StrAppend(&sql, i == 0 ? " AND j.state IN (" : ", ", parameter(kFirstState + i));
    }
    if (state_count > 0) absl::StrAppend(&sql, ")");
    return absl::StrCat(sql, " ORDER BY l.job_id DESC LIMIT ?3");
  }
  // the project's:
  if (state_count == 0) {
    return "SELECT record, id FROM jobs WHERE project = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3";
  }
  // or that of each state, to the end of a page; the newest of these make the page.
  std::string ids;
  for (size_t i = 0; i < state_count; ++i) {
    absl::StrAppend(
        &ids, i == 0 ? "" : " UNION ALL ",
        "SELECT * FROM (SELECT id FROM jobs INDEXED BY jobs_by_state WHERE project = ?1 "
        "AND state = ",
        parameter(kFirstState + i), " AND id < ?2 ORDER BY id DESC LIMIT ?3)");
  }
  return absl::StrCat("SELECT j.record, j.id FROM (", ids,
                      " ORDER BY id DESC LIMIT ?3) page CROSS JOIN jobs j ON j.id = page.id "
                      "ORDER BY page.id DESC");
}

absl::StatusOr<StoreReader::JobPage> SqliteTransaction::ListJobs(const JobFilter& filter,
                                                                 int page_size,
                                                                 const std::string& page_token) {
  ASSIGN_OR_RETURN(const int64_t before, StartOfPage(filter, page_size, page_token));
  const std::set<v1::CompressionJob::State> states(filter.states.begin(), filter.states.end());
  // One more, to know whether there is a next page.
  ASSIGN_OR_RETURN(SqliteStatement statement,
                   connection_.Prepare(ListJobsSql(states.size(), filter.labels.size()),
                                       filter.project, before, int64_t{page_size} + 1));
  int index = 3;
  for (const v1::CompressionJob::State state : states) statement.Bind(++index, state);
  for (const auto& [key, value] : filter.labels) {
    statement.Bind(++index, key);
    statement.Bind(++index, value);
  }

  JobPage page;
  int64_t last_id = 0;
  for (int count = 0;; ++count) {
    ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return page;
    if (count == page_size) {
      page.next_page_token = EncodePageToken(filter, last_id);
      return page;
    }
    last_id = statement.Int(1);
    AppendUnlessDamaged(statement.Bytes(0), "jobs", last_id, page.jobs, &ParseShownJob);
  }
}

absl::StatusOr<std::optional<StoreReader::Request>> SqliteTransaction::FindRequest(
    const std::string& project, const std::string& request_id) {
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT j.job, r.fingerprint FROM requests r JOIN jobs j "
                          "ON j.id = r.job_id WHERE r.project = ?1 AND r.request_id = ?2",
                          project, request_id));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return std::optional<Request>();
  return std::optional<Request>(
      Request{JobName{project, std::string(statement.Bytes(0))}, std::string(statement.Bytes(1))});
}

absl::StatusOr<TaskRecord> SqliteTransaction::GetTask(const JobName& job,
                                                      const std::string& task_id) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT record FROM tasks WHERE job_id = ?1 AND task_id = ?2", job_id,
                          task_id));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return TaskNotStored(job, task_id);
  TaskRecord task;
  const absl::Status parsed = ParseTask(statement.Bytes(0), task);
  if (!parsed.ok()) ReportDamagedRowOf("tasks", job_id, parsed);
  RETURN_IF_ERROR(parsed);
  return task;
}

absl::StatusOr<std::vector<TaskRecord>> SqliteTransaction::ListTasks(const JobName& job) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return ParseRows<TaskRecord>(
      "tasks", job_id,
      connection_.Prepare("SELECT record FROM tasks WHERE job_id = ?1 ORDER BY id", job_id));
}

// The conditions on state are literal so that SQLite can match them with the partial indexes. One
// step of the index leads from a queue to the next, whatever lies between.
absl::StatusOr<std::vector<StoreReader::TaskQueue>> SqliteTransaction::TaskQueues(absl::Time now,
                                                                                  int limit) {
  std::vector<TaskQueue> queues;
  std::string project;  // Before any project's name.
  int64_t need_class = -1;
  for (;;) {
    {
      ASSIGN_OR_RETURN(
          SqliteStatement next,
          connection_.Prepare("SELECT project, memory_class FROM tasks INDEXED BY tasks_queued "
                              "WHERE state = 1 AND (project, memory_class) > (?1, ?2) "
                              "ORDER BY project, memory_class LIMIT 1",
                              project, need_class));
      ASSIGN_OR_RETURN(const bool row, next.Step());
      if (!row) return queues;
      project = std::string(next.Bytes(0));
      need_class = next.Int(1);
    }
    // Without LIMIT: damaged ones must not take the places of others.
    ASSIGN_OR_RETURN(
        std::vector<TaskRecord> tasks,
        ParseUndamagedTasks(
            connection_.Prepare(
                "SELECT record, id FROM tasks INDEXED BY tasks_queued WHERE state = 1 AND project "
                "= ?1 AND memory_class = ?2 AND not_before <= ?3 ORDER BY priority DESC, "
                "create_time, id",
                project, need_class, ToNanoseconds(now)),
            limit));
    if (tasks.empty()) continue;  // All of them back off, or are damaged.
    queues.push_back({.project = project,
                      .need_class = static_cast<int>(need_class),
                      .tasks = std::move(tasks)});
  }
}

absl::StatusOr<std::optional<absl::Time>> SqliteTransaction::NextNotBefore(absl::Time now) {
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT not_before FROM tasks INDEXED BY tasks_by_not_before WHERE "
                          "state = 1 AND not_before > ?1 ORDER BY not_before LIMIT 1",
                          ToNanoseconds(now)));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return std::optional<absl::Time>();
  return std::optional<absl::Time>(absl::FromUnixNanos(statement.Int(0)));
}

absl::StatusOr<std::vector<TaskRecord>> SqliteTransaction::LeasedTasks() {
  return ParseUndamagedTasks(connection_.Prepare(
      "SELECT record, id FROM tasks INDEXED BY tasks_leased WHERE state = 2 ORDER "
      "BY lease_expire_time, id"));
}

// Leases are few, and a queue that owns the store knows them by heart: no index for this.
absl::StatusOr<std::vector<TaskRecord>> SqliteTransaction::LeasedTasksOf(
    const std::vector<std::string>& workers) {
  ASSIGN_OR_RETURN(std::vector<TaskRecord> tasks, LeasedTasks());
  const std::set<std::string> wanted(workers.begin(), workers.end());
  std::erase_if(tasks, [&](const TaskRecord& task) { return !wanted.contains(task.worker()); });
  return tasks;
}

absl::StatusOr<std::vector<v1::Trial>> SqliteTransaction::ListTrials(const JobName& job,
                                                                     int after_index, int limit) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return ParseRows<v1::Trial>(
      "trials", job_id,
      connection_.Prepare("SELECT record FROM trials WHERE job_id = ?1 AND trial_index > ?2 ORDER "
                          "BY trial_index LIMIT ?3",
                          job_id, after_index, SqlLimit(limit)));
}

absl::StatusOr<std::vector<v1::JobEvent>> SqliteTransaction::ListEvents(const JobName& job,
                                                                        int64_t after_sequence,
                                                                        int limit) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return ParseRows<v1::JobEvent>(
      "events", job_id,
      connection_.Prepare("SELECT record FROM events WHERE job_id = ?1 AND sequence > ?2 ORDER BY "
                          "sequence LIMIT ?3",
                          job_id, after_sequence, SqlLimit(limit)));
}

absl::StatusOr<std::map<std::string, int64_t>> SqliteTransaction::LastEventSequences(
    const std::vector<JobName>& jobs) {
  std::map<std::string, int64_t> sequences;
  for (const JobName& job : jobs) {
    const absl::StatusOr<int64_t> job_id = FindJobId(job);
    if (absl::IsNotFound(job_id.status())) continue;
    if (!job_id.ok()) return job_id.status();
    ASSIGN_OR_RETURN(
        SqliteStatement statement,
        connection_.Prepare("SELECT max(sequence) FROM events WHERE job_id = ?1", *job_id));
    RETURN_IF_ERROR(statement.Step().status());
    sequences[job.ToString()] = statement.Int(0);  // NULL reads as 0.
  }
  return sequences;
}

absl::StatusOr<std::vector<v1::Artifact>> SqliteTransaction::ListArtifacts(const JobName& job) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return ParseRows<v1::Artifact>(
      "artifacts", job_id,
      connection_.Prepare("SELECT record FROM artifacts WHERE job_id = ?1 ORDER BY path", job_id));
}

absl::StatusOr<std::vector<JobName>> SqliteTransaction::UnplannedJobs() {
  return ReadNames(connection_.Prepare(
      "SELECT project, job FROM jobs INDEXED BY jobs_unfinished WHERE state IN (1, 2, 3) AND "
      "(state = 2 OR (state = 1 AND NOT EXISTS "
      "(SELECT 1 FROM tasks WHERE tasks.job_id = jobs.id))) ORDER BY state DESC, "
      "(SELECT priority FROM tasks WHERE tasks.job_id = jobs.id LIMIT 1) DESC, id"));
}

absl::StatusOr<std::vector<JobName>> SqliteTransaction::StalledJobs() {
  return ReadNames(connection_.Prepare(
      "SELECT project, job FROM jobs INDEXED BY jobs_unfinished WHERE state IN (1, 2, 3) AND "
      "state = 2 AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.job_id = jobs.id AND "
      "tasks.state IN (1, 2)) ORDER BY id"));
}

absl::StatusOr<StoreReader::JobsByAge> SqliteTransaction::OldestJobs(int64_t position, int limit) {
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT record, id FROM jobs WHERE id > ?1 ORDER BY id LIMIT ?2",
                          position, SqlLimit(limit)));
  JobsByAge page{.position = position};
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return page;
    page.position = statement.Int(1);
    AppendUnlessDamaged(statement.Bytes(0), "jobs", page.position, page.jobs);
  }
}

absl::StatusOr<std::vector<JobName>> SqliteTransaction::JobsPastLimit(absl::Time now, int limit) {
  return ReadNames(connection_.Prepare(
      "SELECT project, job FROM jobs INDEXED BY jobs_by_limit WHERE limit_time > 0 AND "
      "limit_time <= ?1 ORDER BY limit_time LIMIT ?2",
      ToNanoseconds(now), SqlLimit(limit)));
}

absl::StatusOr<bool> SqliteTransaction::AnyJobHasLimit() {
  ASSIGN_OR_RETURN(SqliteStatement statement,
                   connection_.Prepare(
                       "SELECT 1 FROM jobs INDEXED BY jobs_by_limit WHERE limit_time > 0 LIMIT 1"));
  return statement.Step();
}

absl::StatusOr<StoreReader::QueueUsage> SqliteTransaction::Usage(const std::string& project) {
  QueueUsage usage;
  const auto number = [](absl::StatusOr<SqliteStatement> statement) -> absl::StatusOr<int64_t> {
    if (!statement.ok()) return std::move(statement).status();
    RETURN_IF_ERROR(statement->Step().status());
    return statement->Int(0);  // NULL reads as 0.
  };
  ASSIGN_OR_RETURN(
      usage.queued_jobs,
      number(connection_.Prepare("SELECT sum(count) FROM job_counts WHERE state IN "
                                 "(?1, ?2)",
                                 v1::CompressionJob::PENDING, v1::CompressionJob::PAUSED)));
  ASSIGN_OR_RETURN(usage.project_queued_jobs,
                   number(connection_.Prepare(
                       "SELECT count(*) FROM jobs WHERE project = ?1 AND state IN "
                       "(?2, ?3)",
                       project, v1::CompressionJob::PENDING, v1::CompressionJob::PAUSED)));
  // A sum() beyond 2^63 is an error, a total() is exact to 2^53, and the cast ends at the largest.
  ASSIGN_OR_RETURN(usage.project_artifact_bytes,
                   number(connection_.Prepare(
                       "SELECT CAST(total(artifact_bytes) AS INTEGER) FROM jobs INDEXED BY "
                       "jobs_by_artifact_bytes WHERE project = ?1 AND artifact_bytes > 0",
                       project)));
  return usage;
}

absl::StatusOr<bool> SqliteTransaction::IsArtifactReferenced(const std::string& sha256) {
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT 1 FROM artifacts WHERE sha256 = ?1 LIMIT 1", sha256));
  return statement.Step();
}

absl::StatusOr<StoreCounts> SqliteTransaction::Counts() {
  StoreCounts counts;
  {
    ASSIGN_OR_RETURN(SqliteStatement statement,
                     connection_.Prepare("SELECT state, count FROM job_counts WHERE count > 0"));
    for (;;) {
      ASSIGN_OR_RETURN(const bool row, statement.Step());
      if (!row) break;
      counts.jobs[static_cast<v1::CompressionJob::State>(statement.Int(0))] = statement.Int(1);
    }
  }
  ASSIGN_OR_RETURN(SqliteStatement statement,
                   connection_.Prepare("SELECT state, count FROM task_counts WHERE count > 0"));
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return counts;
    counts.tasks[static_cast<TaskRecord::State>(statement.Int(0))] = statement.Int(1);
  }
}

absl::Status SqliteTransaction::InsertLabels(int64_t job_id, const std::string& project,
                                             const v1::CompressionJob& job) {
  for (const auto& [key, value] : job.labels()) {
    RETURN_IF_ERROR(connection_.Run(
        "INSERT INTO job_labels (job_id, project, key, value) VALUES (?1, ?2, ?3, ?4)", job_id,
        project, key, value));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> SqliteTransaction::LabelsDiffer(int64_t job_id,
                                                     const v1::CompressionJob& job) {
  ASSIGN_OR_RETURN(
      SqliteStatement statement,
      connection_.Prepare("SELECT key, value FROM job_labels WHERE job_id = ?1", job_id));
  size_t same = 0;
  for (;;) {
    ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return same != job.labels().size();
    const auto label = job.labels().find(std::string(statement.Bytes(0)));
    if (label == job.labels().end() || label->second != statement.Bytes(1)) return true;
    ++same;
  }
}

absl::Status SqliteTransaction::InsertJob(const JobRecord& record) {
  ASSIGN_OR_RETURN(const JobName name, JobName::Parse(record.job().name()));
  const absl::Status inserted = connection_.Run(
      "INSERT INTO jobs (project, job, state, limit_time, artifact_bytes, record) "
      "VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
      name.project, name.job, record.job().state(), ToNanoseconds(record.limit_time()),
      record.artifact_bytes(), SqliteBlob{record.SerializeAsString()});
  if (absl::IsAlreadyExists(inserted)) {
    return absl::AlreadyExistsError(absl::StrCat("Job exists already: ", name.ToString()));
  }
  RETURN_IF_ERROR(inserted);
  known_job_ = name;
  known_job_id_ = connection_.last_insert_id();
  return InsertLabels(known_job_id_, name.project, record.job());
}

absl::Status SqliteTransaction::UpdateJob(const JobRecord& record) {
  ASSIGN_OR_RETURN(const JobName name, JobName::Parse(record.job().name()));
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(name));
  RETURN_IF_ERROR(connection_.Run(
      "UPDATE jobs SET state = ?2, limit_time = ?3, artifact_bytes = ?4, record = ?5 WHERE id = ?1",
      job_id, record.job().state(), ToNanoseconds(record.limit_time()), record.artifact_bytes(),
      SqliteBlob{record.SerializeAsString()}));
  ASSIGN_OR_RETURN(const bool relabelled, LabelsDiffer(job_id, record.job()));
  if (!relabelled) return absl::OkStatus();
  RETURN_IF_ERROR(connection_.Run("DELETE FROM job_labels WHERE job_id = ?1", job_id));
  return InsertLabels(job_id, name.project, record.job());
}

absl::Status SqliteTransaction::DeleteJob(const JobName& name) {
  // What belongs to it goes with it: ON DELETE CASCADE.
  RETURN_IF_ERROR(
      connection_.Run("DELETE FROM jobs WHERE project = ?1 AND job = ?2", name.project, name.job));
  if (connection_.changed_row_count() == 0) return JobNotStored(name);
  known_job_id_ = 0;
  return absl::OkStatus();
}

absl::Status SqliteTransaction::InsertRequest(const std::string& project,
                                              const std::string& request_id,
                                              const Request& request) {
  RETURN_IF_ERROR(CheckRequestProject(project, request.job));
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(request.job));
  const absl::Status inserted = connection_.Run(
      "INSERT INTO requests (project, request_id, job_id, fingerprint) VALUES (?1, ?2, ?3, ?4)",
      project, request_id, job_id, request.fingerprint);
  if (absl::IsAlreadyExists(inserted)) {
    return absl::AlreadyExistsError(
        absl::StrCat("Request id was used before in projects/", project, ": ", request_id));
  }
  return inserted;
}

absl::StatusOr<std::optional<TaskRecord>> SqliteTransaction::TakeTask(const JobName& job,
                                                                      const std::string& task_id,
                                                                      absl::Time now) {
  absl::StatusOr<TaskRecord> task = GetTask(job, task_id);
  if (absl::IsNotFound(task.status())) return std::optional<TaskRecord>();
  if (!task.ok()) return task.status();
  if (task->state() != TaskRecord::QUEUED ||
      ToNanoseconds(task->not_before()) > ToNanoseconds(now)) {
    return std::optional<TaskRecord>();
  }
  return std::optional<TaskRecord>(*std::move(task));
}

absl::Status SqliteTransaction::PutTask(const TaskRecord& task) {
  ASSIGN_OR_RETURN(const JobName job, JobName::Parse(task.job()));
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return connection_.Run(
      "INSERT INTO tasks (job_id, task_id, state, priority, create_time, not_before, "
      "lease_expire_time, project, memory_class, record) "
      "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) "
      "ON CONFLICT (job_id, task_id) DO UPDATE SET state = excluded.state, "
      "priority = excluded.priority, create_time = excluded.create_time, "
      "not_before = excluded.not_before, lease_expire_time = excluded.lease_expire_time, "
      "memory_class = excluded.memory_class, record = excluded.record",
      job_id, task.task_id(), task.state(), task.priority(), ToNanoseconds(task.create_time()),
      ToNanoseconds(task.not_before()), ToNanoseconds(task.lease_expire_time()), job.project,
      NeedClass(task), SqliteBlob{task.SerializeAsString()});
}

absl::Status SqliteTransaction::PutTrial(const JobName& job, const v1::Trial& trial) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return connection_.Run(
      "INSERT INTO trials (job_id, trial_index, record) VALUES (?1, ?2, ?3) "
      "ON CONFLICT (job_id, trial_index) DO UPDATE SET record = excluded.record",
      job_id, trial.index(), SqliteBlob{trial.SerializeAsString()});
}

absl::Status SqliteTransaction::PutArtifact(const JobName& job, const v1::Artifact& artifact) {
  ASSIGN_OR_RETURN(const std::string path, ArtifactPathIn(job, artifact));
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return connection_.Run(
      "INSERT INTO artifacts (job_id, path, sha256, record) VALUES (?1, ?2, ?3, ?4) "
      "ON CONFLICT (job_id, path) DO UPDATE SET sha256 = excluded.sha256, record = excluded.record",
      job_id, path, artifact.sha256(), SqliteBlob{artifact.SerializeAsString()});
}

absl::Status SqliteTransaction::RemoveArtifact(const JobName& job, const std::string& path) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  return connection_.Run("DELETE FROM artifacts WHERE job_id = ?1 AND path = ?2", job_id, path);
}

absl::Status SqliteTransaction::AppendEvent(const JobName& job, const v1::JobEvent& event) {
  ASSIGN_OR_RETURN(const int64_t job_id, FindJobId(job));
  int64_t last = 0;
  {
    ASSIGN_OR_RETURN(
        SqliteStatement statement,
        connection_.Prepare("SELECT max(sequence) FROM events WHERE job_id = ?1", job_id));
    RETURN_IF_ERROR(statement.Step().status());
    last = statement.Int(0);  // NULL reads as 0.
  }
  RETURN_IF_ERROR(CheckEventSequence(job, last, event.sequence()));
  return connection_.Run("INSERT INTO events (job_id, sequence, record) VALUES (?1, ?2, ?3)",
                         job_id, event.sequence(), SqliteBlob{event.SerializeAsString()});
}

}  // namespace qpruner::server
