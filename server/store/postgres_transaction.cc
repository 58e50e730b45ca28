#include "server/store/postgres_transaction.h"

#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "server/store/damaged_rows.h"
#include "server/store/page_token.h"
#include "server/store/stored_record.h"

namespace qpruner::server {
namespace {

using internal::v1::JobRecord;
using internal::v1::TaskRecord;
using Parameter = PostgresParameter;

// --- Jobs ---

constexpr PostgresStatement kFindJob = {
    "find_job", "SELECT id, record FROM jobs WHERE project = $1 AND job = $2"};
// The last sequence is a statement of its own: the first waits for the row, this one is then new
// enough to see what the transaction that held it has appended.
constexpr PostgresStatement kLockJob = {
    "lock_job", "SELECT id, record FROM jobs WHERE project = $1 AND job = $2 FOR UPDATE"};
constexpr PostgresStatement kLastSequence = {
    "last_sequence",
    "SELECT (SELECT max(sequence) FROM events WHERE job_id = jobs.id) FROM jobs "
    "WHERE project = $1 AND job = $2"};
// Inserts nothing if the name is taken: an error would end the transaction.
constexpr PostgresStatement kInsertJob = {
    "insert_job",
    "INSERT INTO jobs (project, job, state, labels, limit_time, artifact_bytes, record) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7) "
    "ON CONFLICT DO NOTHING RETURNING id"};
constexpr PostgresStatement kUpdateJob = {
    "update_job",
    "UPDATE jobs SET state = $2, labels = $3, limit_time = $4, artifact_bytes = $5, record = $6 "
    "WHERE id = $1"};
constexpr PostgresStatement kDeleteJob = {"delete_job", "DELETE FROM jobs WHERE id = $1"};

// One statement for each shape of filter, so that each has the plan that fits it.
constexpr PostgresStatement kListJobs = {
    "list_jobs",
    "SELECT record, id FROM jobs WHERE project = $1 AND id < $2 ORDER BY id DESC LIMIT $3"};
constexpr PostgresStatement kListJobsByLabel = {
    "list_jobs_by_label",
    "SELECT record, id FROM jobs WHERE project = $1 AND id < $2 AND labels @> $4::jsonb "
    "ORDER BY id DESC LIMIT $3"};
constexpr PostgresStatement kListJobsByLabelAndState = {
    "list_jobs_by_label_and_state",
    "SELECT record, id FROM jobs WHERE project = $1 AND id < $2 AND labels @> $4::jsonb "
    "AND state = ANY ($5::int[]) ORDER BY id DESC LIMIT $3"};

constexpr PostgresStatement kUnplannedJobs = {
    "unplanned_jobs",
    "SELECT project, job FROM jobs WHERE state = 2 OR (state = 1 AND NOT EXISTS "
    "(SELECT 1 FROM tasks WHERE tasks.job_id = jobs.id)) ORDER BY state DESC, "
    "(SELECT priority FROM tasks WHERE tasks.job_id = jobs.id LIMIT 1) DESC NULLS LAST, id"};
constexpr PostgresStatement kStalledJobs = {
    "stalled_jobs",
    "SELECT project, job FROM jobs WHERE state IN (1, 2, 3) AND state = 2 AND NOT EXISTS "
    "(SELECT 1 FROM tasks WHERE tasks.job_id = jobs.id AND tasks.state IN (1, 2)) ORDER BY id"};
constexpr PostgresStatement kOldestJobs = {
    "oldest_jobs", "SELECT record, id FROM jobs WHERE id > $1 ORDER BY id LIMIT $2"};
constexpr PostgresStatement kJobsPastLimit = {
    "jobs_past_limit",
    "SELECT project, job FROM jobs WHERE limit_time > 0 AND limit_time <= $1 "
    "ORDER BY limit_time LIMIT $2"};
constexpr PostgresStatement kAnyJobHasLimit = {"any_job_has_limit",
                                               "SELECT 1 FROM jobs WHERE limit_time > 0 LIMIT 1"};
constexpr PostgresStatement kUsage = {
    "usage",
    "SELECT (SELECT count(*) FROM jobs WHERE state = ANY ($2::int[])), "
    "(SELECT count(*) FROM jobs WHERE state = ANY ($2::int[]) AND project = $1), "
    "(SELECT least(coalesce(sum(artifact_bytes), 0), 9223372036854775807)::bigint "
    "FROM jobs WHERE project = $1 AND artifact_bytes > 0)"};
constexpr PostgresStatement kCountJobs = {"count_jobs",
                                          "SELECT state, count(*) FROM jobs GROUP BY state"};
constexpr PostgresStatement kCountTasks = {"count_tasks",
                                           "SELECT state, count(*) FROM tasks GROUP BY state"};

// --- Requests ---

constexpr PostgresStatement kFindRequest = {
    "find_request",
    "SELECT j.job, r.fingerprint FROM requests r JOIN jobs j ON j.id = r.job_id "
    "WHERE r.project = $1 AND r.request_id = $2"};
constexpr PostgresStatement kInsertRequest = {
    "insert_request",
    "INSERT INTO requests (project, request_id, job_id, fingerprint) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT DO NOTHING"};

// --- Tasks ---

constexpr PostgresStatement kGetTask = {
    "get_task", "SELECT record FROM tasks WHERE job_id = $1 AND task_id = $2"};
constexpr PostgresStatement kListTasks = {"list_tasks",
                                          "SELECT record FROM tasks WHERE job_id = $1 ORDER BY id"};
// One step of the index leads from a queue to the next, whatever lies between.
constexpr PostgresStatement kTaskQueues = {
    "task_queues",
    "WITH RECURSIVE queues AS ("
    "(SELECT project, memory_class FROM tasks WHERE state = 1 ORDER BY project, memory_class LIMIT "
    "1) "
    "UNION ALL "
    "SELECT next.project, next.memory_class FROM queues CROSS JOIN LATERAL "
    "(SELECT project, memory_class FROM tasks WHERE state = 1 AND (project, memory_class) > "
    "(queues.project, queues.memory_class) ORDER BY project, memory_class LIMIT 1) next) "
    "SELECT first.record, queues.project, queues.memory_class, first.id FROM queues CROSS JOIN "
    "LATERAL "
    "(SELECT record, priority, create_time, id FROM tasks WHERE state = 1 "
    "AND project = queues.project AND memory_class = queues.memory_class AND not_before <= $1 "
    "ORDER BY priority DESC, create_time, id LIMIT $2) first "
    "ORDER BY queues.project, queues.memory_class, first.priority DESC, first.create_time, "
    "first.id"};
// Jobs before tasks, as everywhere; the task too, so that a row that has changed since the
// statement's snapshot is looked at again.
constexpr PostgresStatement kTakeTask = {
    "take_task",
    "SELECT t.record FROM jobs j JOIN tasks t ON t.job_id = j.id WHERE j.project = $1 AND j.job = "
    "$2 "
    "AND t.task_id = $3 AND t.state = 1 AND t.not_before <= $4 FOR UPDATE OF j, t SKIP LOCKED"};
constexpr PostgresStatement kNextNotBefore = {
    "next_not_before",
    "SELECT not_before FROM tasks WHERE state = 1 AND not_before > $1 ORDER BY not_before LIMIT 1"};
constexpr PostgresStatement kLeasedTasks = {
    "leased_tasks", "SELECT record, id FROM tasks WHERE state = 2 ORDER BY lease_expire_time, id"};
constexpr PostgresStatement kLeasedTasksOf = {
    "leased_tasks_of",
    "SELECT record, id FROM tasks WHERE state = 2 AND worker = ANY ($1::text[]) "
    "ORDER BY lease_expire_time, id"};
constexpr PostgresStatement kPutTask = {
    "put_task",
    "INSERT INTO tasks (job_id, task_id, state, priority, create_time, not_before, "
    "lease_expire_time, worker, project, memory_class, record) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) "
    "ON CONFLICT (job_id, task_id) DO UPDATE SET state = excluded.state, "
    "priority = excluded.priority, create_time = excluded.create_time, "
    "not_before = excluded.not_before, lease_expire_time = excluded.lease_expire_time, "
    "worker = excluded.worker, memory_class = excluded.memory_class, record = excluded.record"};

// --- Trials, events, artifacts ---

constexpr PostgresStatement kListTrials = {
    "list_trials",
    "SELECT record FROM trials WHERE job_id = $1 AND trial_index > $2 ORDER BY trial_index "
    "LIMIT $3"};
constexpr PostgresStatement kPutTrial = {
    "put_trial",
    "INSERT INTO trials (job_id, trial_index, record) VALUES ($1, $2, $3) "
    "ON CONFLICT (job_id, trial_index) DO UPDATE SET record = excluded.record"};
constexpr PostgresStatement kListEvents = {
    "list_events",
    "SELECT record FROM events WHERE job_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3"};
constexpr PostgresStatement kLastSequences = {
    "last_sequences",
    "SELECT j.project, j.job, (SELECT max(sequence) FROM events WHERE job_id = j.id) "
    "FROM unnest($1::text[], $2::text[]) AS wanted (project, job) "
    "JOIN jobs j ON j.project = wanted.project AND j.job = wanted.job"};
constexpr PostgresStatement kInsertEvent = {
    "insert_event", "INSERT INTO events (job_id, sequence, record) VALUES ($1, $2, $3)"};
constexpr PostgresStatement kListArtifacts = {
    "list_artifacts", "SELECT record FROM artifacts WHERE job_id = $1 ORDER BY path"};
constexpr PostgresStatement kPutArtifact = {
    "put_artifact",
    "INSERT INTO artifacts (job_id, path, sha256, record) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT (job_id, path) DO UPDATE SET sha256 = excluded.sha256, record = excluded.record"};
constexpr PostgresStatement kRemoveArtifact = {
    "remove_artifact", "DELETE FROM artifacts WHERE job_id = $1 AND path = $2"};
constexpr PostgresStatement kFindContent = {"find_content",
                                            "SELECT 1 FROM artifacts WHERE sha256 = $1 LIMIT 1"};
// Under these locks the transaction waits for a storage of files: for a look at a file and its
// removal, which try three times for five seconds each (S3Client's brief calls). Were the session
// ended before, its lock would be free while the removal is still on its way.
constexpr PostgresStatement kLockArtifactsToAdd = {
    "lock_artifacts_to_add",
    "SELECT pg_advisory_xact_lock_shared($1), "
    "set_config('idle_in_transaction_session_timeout', '60s', true)"};
constexpr PostgresStatement kLockArtifactsToRemove = {
    "lock_artifacts_to_remove",
    "SELECT pg_advisory_xact_lock($1), "
    "set_config('idle_in_transaction_session_timeout', '60s', true)"};
// "QPRA".
constexpr int64_t kArtifactLock = 0x51505241;

// LIMIT of SQL for "0: all".
int64_t SqlLimit(int limit) {
  return limit <= 0 ? std::numeric_limits<int64_t>::max() : int64_t{limit};
}

// The text of a bound jsonb parameter.
template <typename Labels>
std::string ToJson(const Labels& labels) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [key, value] : labels) json[key] = value;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The text of a bound text[] parameter. Of names, whose grammar has nothing to escape; in quotes,
// for one may be "null".
std::string ToArray(const std::vector<std::string>& names) {
  if (names.empty()) return "{}";
  return absl::StrCat("{\"", absl::StrJoin(names, "\",\""), "\"}");
}

// Rows of one job; the record is column 0.
template <typename Message>
absl::StatusOr<std::vector<Message>> ParseRows(absl::string_view table, int64_t job_id,
                                               const absl::StatusOr<PostgresResult>& result) {
  if (!result.ok()) return result.status();
  std::vector<Message> messages(result->row_count());
  for (int row = 0; row < result->row_count(); ++row) {
    const absl::Status parsed = ParseRecord(result->Bytes(row, 0), messages[row]);
    if (!parsed.ok()) ReportDamagedRowOf(table, job_id, parsed);
    RETURN_IF_ERROR(parsed);
  }
  return messages;
}

// The same, of tasks of many jobs: (record, id).
absl::StatusOr<std::vector<TaskRecord>> ParseUndamagedTasks(
    const absl::StatusOr<PostgresResult>& result) {
  if (!result.ok()) return result.status();
  std::vector<TaskRecord> tasks;
  for (int row = 0; row < result->row_count(); ++row) {
    AppendUnlessDamaged(result->Bytes(row, 0), "tasks", result->Int(row, 1), tasks, &ParseTask);
  }
  return tasks;
}

// Rows of (project, job).
absl::StatusOr<std::vector<JobName>> ReadNames(const absl::StatusOr<PostgresResult>& result) {
  if (!result.ok()) return result.status();
  std::vector<JobName> names;
  for (int row = 0; row < result->row_count(); ++row) {
    names.push_back({std::string(result->Bytes(row, 0)), std::string(result->Bytes(row, 1))});
  }
  return names;
}

}  // namespace

// Walks the index from the newest job of each state to the end of a page; the newest of these make
// the page.
const PostgresStatement kListJobsByState = {
    "list_jobs_by_state",
    "SELECT jobs.record, jobs.id FROM (SELECT newest.id FROM unnest($4::int[]) AS wanted (state) "
    "CROSS JOIN LATERAL (SELECT id FROM jobs WHERE project = $1 AND jobs.state = wanted.state "
    "AND id < $2 ORDER BY id DESC LIMIT $3) newest ORDER BY newest.id DESC LIMIT $3) page "
    "JOIN jobs ON jobs.id = page.id ORDER BY jobs.id DESC"};

absl::StatusOr<PostgresTransaction::KnownJob*> PostgresTransaction::Find(const JobName& name) {
  const std::pair key(name.project, name.job);
  if (const auto known = known_jobs_.find(key); known != known_jobs_.end()) return &known->second;
  const bool writes = mode_ == Mode::kWrite;
  RETURN_IF_ERROR(
      connection_.SendForResult(writes ? kLockJob : kFindJob, {name.project, name.job}));
  if (writes) {
    RETURN_IF_ERROR(connection_.SendForResult(kLastSequence, {name.project, name.job}));
  }
  ASSIGN_OR_RETURN(const std::vector<PostgresResult> results, connection_.Flush());
  if (results[0].row_count() == 0) return JobNotStored(name);
  KnownJob& job = known_jobs_[key];
  job.id = results[0].Int(0, 0);
  job.record = std::string(results[0].Bytes(0, 1));
  if (writes && results[1].row_count() > 0) job.last_sequence = results[1].Int(0, 0);
  return &job;
}

absl::StatusOr<JobRecord> PostgresTransaction::GetJob(const JobName& name) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  JobRecord record;
  const absl::Status parsed = ParseJob(job->record, name, record);
  if (!parsed.ok()) ReportDamagedRow("jobs", job->id, parsed);
  RETURN_IF_ERROR(parsed);
  return record;
}

absl::StatusOr<v1::CompressionJob> PostgresTransaction::ShowJob(const JobName& name) {
  ASSIGN_OR_RETURN(const KnownJob* stored, Find(name));
  v1::CompressionJob job;
  RETURN_IF_ERROR(ParseShownJob(stored->record, job));
  return job;
}

absl::StatusOr<StoreReader::JobPage> PostgresTransaction::ListJobs(const JobFilter& filter,
                                                                   int page_size,
                                                                   const std::string& page_token) {
  ASSIGN_OR_RETURN(const int64_t before, StartOfPage(filter, page_size, page_token));
  // One more, to know whether there is a next page.
  std::vector<Parameter> parameters = {filter.project, before, int64_t{page_size} + 1};
  if (!filter.labels.empty()) parameters.push_back(ToJson(filter.labels));
  if (!filter.states.empty()) {
    const std::set<v1::CompressionJob::State> states(filter.states.begin(), filter.states.end());
    parameters.push_back(absl::StrCat("{", absl::StrJoin(states, ","), "}"));
  }
  const PostgresStatement& statement =
      filter.labels.empty() ? (filter.states.empty() ? kListJobs : kListJobsByState)
                            : (filter.states.empty() ? kListJobsByLabel : kListJobsByLabelAndState);
  ASSIGN_OR_RETURN(const PostgresResult result, connection_.Run(statement, std::move(parameters)));
  JobPage page;
  for (int row = 0; row < std::min(result.row_count(), page_size); ++row) {
    AppendUnlessDamaged(result.Bytes(row, 0), "jobs", result.Int(row, 1), page.jobs,
                        &ParseShownJob);
  }
  if (result.row_count() > page_size) {
    page.next_page_token = EncodePageToken(filter, result.Int(page_size - 1, 1));
  }
  return page;
}

absl::StatusOr<std::optional<StoreReader::Request>> PostgresTransaction::FindRequest(
    const std::string& project, const std::string& request_id) {
  ASSIGN_OR_RETURN(const PostgresResult result,
                   connection_.Run(kFindRequest, {project, request_id}));
  if (result.row_count() == 0) return std::optional<Request>();
  return std::optional<Request>(
      Request{JobName{project, std::string(result.Bytes(0, 0))}, std::string(result.Bytes(0, 1))});
}

absl::StatusOr<TaskRecord> PostgresTransaction::GetTask(const JobName& name,
                                                        const std::string& task_id) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  ASSIGN_OR_RETURN(const PostgresResult result, connection_.Run(kGetTask, {job->id, task_id}));
  if (result.row_count() == 0) return TaskNotStored(name, task_id);
  TaskRecord task;
  const absl::Status parsed = ParseTask(result.Bytes(0, 0), task);
  if (!parsed.ok()) ReportDamagedRowOf("tasks", job->id, parsed);
  RETURN_IF_ERROR(parsed);
  return task;
}

absl::StatusOr<std::vector<TaskRecord>> PostgresTransaction::ListTasks(const JobName& name) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  return ParseRows<TaskRecord>("tasks", job->id, connection_.Run(kListTasks, {job->id}));
}

absl::StatusOr<std::vector<StoreReader::TaskQueue>> PostgresTransaction::TaskQueues(absl::Time now,
                                                                                    int limit) {
  // Damaged tasks must not take the places of others: more are asked for, until none lacks.
  for (int64_t asked = SqlLimit(limit);; asked *= 8) {
    ASSIGN_OR_RETURN(const PostgresResult result,
                     connection_.Run(kTaskQueues, {ToNanoseconds(now), asked}));
    std::vector<TaskQueue> queues;
    int64_t rows_of_queue = 0;
    bool complete = true;
    for (int row = 0; row < result.row_count(); ++row) {
      const std::string project(result.Bytes(row, 1));
      const int need_class = static_cast<int>(result.Int(row, 2));
      if (queues.empty() || queues.back().project != project ||
          queues.back().need_class != need_class) {
        queues.push_back({.project = project, .need_class = need_class});
        rows_of_queue = 0;
      }
      std::vector<TaskRecord>& tasks = queues.back().tasks;
      ++rows_of_queue;
      if (limit <= 0 || tasks.size() < static_cast<size_t>(limit)) {
        AppendUnlessDamaged(result.Bytes(row, 0), "tasks", result.Int(row, 3), tasks, &ParseTask);
      }
      if (rows_of_queue == asked && tasks.size() < static_cast<size_t>(limit)) complete = false;
    }
    if (!complete) continue;
    // Queues of nothing but damaged tasks.
    std::erase_if(queues, [](const TaskQueue& queue) { return queue.tasks.empty(); });
    return queues;
  }
}

absl::StatusOr<std::optional<TaskRecord>> PostgresTransaction::TakeTask(const JobName& job,
                                                                        const std::string& task_id,
                                                                        absl::Time now) {
  ASSIGN_OR_RETURN(const PostgresResult result,
                   connection_.Run(kTakeTask, {job.project, job.job, task_id, ToNanoseconds(now)}));
  if (result.row_count() == 0) return std::optional<TaskRecord>();
  TaskRecord task;
  RETURN_IF_ERROR(ParseTask(result.Bytes(0, 0), task));
  return std::optional<TaskRecord>(std::move(task));
}

absl::StatusOr<std::optional<absl::Time>> PostgresTransaction::NextNotBefore(absl::Time now) {
  ASSIGN_OR_RETURN(const PostgresResult result,
                   connection_.Run(kNextNotBefore, {ToNanoseconds(now)}));
  if (result.row_count() == 0) return std::optional<absl::Time>();
  return std::optional<absl::Time>(absl::FromUnixNanos(result.Int(0, 0)));
}

absl::StatusOr<std::vector<TaskRecord>> PostgresTransaction::LeasedTasks() {
  return ParseUndamagedTasks(connection_.Run(kLeasedTasks, {}));
}

absl::StatusOr<std::vector<TaskRecord>> PostgresTransaction::LeasedTasksOf(
    const std::vector<std::string>& workers) {
  return ParseUndamagedTasks(connection_.Run(kLeasedTasksOf, {ToArray(workers)}));
}

absl::StatusOr<std::vector<v1::Trial>> PostgresTransaction::ListTrials(const JobName& name,
                                                                       int after_index, int limit) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  return ParseRows<v1::Trial>(
      "trials", job->id, connection_.Run(kListTrials, {job->id, after_index, SqlLimit(limit)}));
}

absl::StatusOr<std::vector<v1::JobEvent>> PostgresTransaction::ListEvents(const JobName& name,
                                                                          int64_t after_sequence,
                                                                          int limit) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  return ParseRows<v1::JobEvent>(
      "events", job->id, connection_.Run(kListEvents, {job->id, after_sequence, SqlLimit(limit)}));
}

absl::StatusOr<std::map<std::string, int64_t>> PostgresTransaction::LastEventSequences(
    const std::vector<JobName>& jobs) {
  std::vector<std::string> projects, ids;
  for (const JobName& job : jobs) {
    projects.push_back(job.project);
    ids.push_back(job.job);
  }
  ASSIGN_OR_RETURN(const PostgresResult result,
                   connection_.Run(kLastSequences, {ToArray(projects), ToArray(ids)}));
  std::map<std::string, int64_t> sequences;
  for (int row = 0; row < result.row_count(); ++row) {
    const JobName name{std::string(result.Bytes(row, 0)), std::string(result.Bytes(row, 1))};
    sequences[name.ToString()] = result.Int(row, 2);
  }
  return sequences;
}

absl::StatusOr<std::vector<v1::Artifact>> PostgresTransaction::ListArtifacts(const JobName& name) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  return ParseRows<v1::Artifact>("artifacts", job->id, connection_.Run(kListArtifacts, {job->id}));
}

absl::StatusOr<std::vector<JobName>> PostgresTransaction::UnplannedJobs() {
  return ReadNames(connection_.Run(kUnplannedJobs, {}));
}

absl::StatusOr<std::vector<JobName>> PostgresTransaction::StalledJobs() {
  return ReadNames(connection_.Run(kStalledJobs, {}));
}

absl::StatusOr<StoreReader::JobsByAge> PostgresTransaction::OldestJobs(int64_t position,
                                                                       int limit) {
  ASSIGN_OR_RETURN(const PostgresResult result,
                   connection_.Run(kOldestJobs, {position, SqlLimit(limit)}));
  JobsByAge page{.position = position};
  for (int row = 0; row < result.row_count(); ++row) {
    page.position = result.Int(row, 1);
    AppendUnlessDamaged(result.Bytes(row, 0), "jobs", page.position, page.jobs);
  }
  return page;
}

absl::StatusOr<std::vector<JobName>> PostgresTransaction::JobsPastLimit(absl::Time now, int limit) {
  return ReadNames(connection_.Run(kJobsPastLimit, {ToNanoseconds(now), SqlLimit(limit)}));
}

absl::StatusOr<bool> PostgresTransaction::AnyJobHasLimit() {
  ASSIGN_OR_RETURN(const PostgresResult result, connection_.Run(kAnyJobHasLimit, {}));
  return result.row_count() > 0;
}

absl::StatusOr<StoreReader::QueueUsage> PostgresTransaction::Usage(const std::string& project) {
  const std::string queued =
      absl::StrCat("{", v1::CompressionJob::PENDING, ",", v1::CompressionJob::PAUSED, "}");
  ASSIGN_OR_RETURN(const PostgresResult result, connection_.Run(kUsage, {project, queued}));
  return QueueUsage{.queued_jobs = result.Int(0, 0),
                    .project_queued_jobs = result.Int(0, 1),
                    .project_artifact_bytes = result.Int(0, 2)};
}

absl::StatusOr<bool> PostgresTransaction::IsArtifactReferenced(const std::string& sha256) {
  ASSIGN_OR_RETURN(const PostgresResult result, connection_.Run(kFindContent, {sha256}));
  return result.row_count() > 0;
}

absl::StatusOr<StoreCounts> PostgresTransaction::Counts() {
  StoreCounts counts;
  ASSIGN_OR_RETURN(const PostgresResult jobs, connection_.Run(kCountJobs, {}));
  for (int row = 0; row < jobs.row_count(); ++row) {
    counts.jobs[static_cast<v1::CompressionJob::State>(jobs.Int(row, 0))] = jobs.Int(row, 1);
  }
  ASSIGN_OR_RETURN(const PostgresResult tasks, connection_.Run(kCountTasks, {}));
  for (int row = 0; row < tasks.row_count(); ++row) {
    counts.tasks[static_cast<TaskRecord::State>(tasks.Int(row, 0))] = tasks.Int(row, 1);
  }
  return counts;
}

absl::Status PostgresTransaction::InsertJob(const JobRecord& record) {
  ASSIGN_OR_RETURN(const JobName name, JobName::Parse(record.job().name()));
  std::string bytes = record.SerializeAsString();
  ASSIGN_OR_RETURN(const PostgresResult result,
                   connection_.Run(kInsertJob, {name.project, name.job, record.job().state(),
                                                ToJson(record.job().labels()),
                                                ToNanoseconds(record.limit_time()),
                                                record.artifact_bytes(), Parameter::Blob(bytes)}));
  if (result.row_count() == 0) {
    return absl::AlreadyExistsError(absl::StrCat("Job exists already: ", name.ToString()));
  }
  known_jobs_[std::pair(name.project, name.job)] =
      KnownJob{.id = result.Int(0, 0), .record = std::move(bytes)};
  changed_jobs_.insert(name.ToString());
  return absl::OkStatus();
}

absl::Status PostgresTransaction::UpdateJob(const JobRecord& record) {
  ASSIGN_OR_RETURN(const JobName name, JobName::Parse(record.job().name()));
  ASSIGN_OR_RETURN(KnownJob* const job, Find(name));
  job->record = record.SerializeAsString();
  changed_jobs_.insert(name.ToString());
  return connection_.Send(kUpdateJob, {job->id, record.job().state(), ToJson(record.job().labels()),
                                       ToNanoseconds(record.limit_time()), record.artifact_bytes(),
                                       Parameter::Blob(job->record)});
}

absl::Status PostgresTransaction::DeleteJob(const JobName& name) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  // What belongs to it goes with it: ON DELETE CASCADE.
  RETURN_IF_ERROR(connection_.Send(kDeleteJob, {job->id}));
  known_jobs_.erase(std::pair(name.project, name.job));
  changed_jobs_.insert(name.ToString());
  return absl::OkStatus();
}

absl::Status PostgresTransaction::InsertRequest(const std::string& project,
                                                const std::string& request_id,
                                                const Request& request) {
  RETURN_IF_ERROR(CheckRequestProject(project, request.job));
  ASSIGN_OR_RETURN(const KnownJob* job, Find(request.job));
  ASSIGN_OR_RETURN(
      const PostgresResult result,
      connection_.Run(kInsertRequest, {project, request_id, job->id, request.fingerprint}));
  if (result.affected_row_count() > 0) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("Request id was used before in projects/", project, ": ", request_id));
}

absl::Status PostgresTransaction::PutTask(const TaskRecord& task) {
  ASSIGN_OR_RETURN(const JobName name, JobName::Parse(task.job()));
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  return connection_.Send(
      kPutTask,
      {job->id, task.task_id(), task.state(), task.priority(), ToNanoseconds(task.create_time()),
       ToNanoseconds(task.not_before()), ToNanoseconds(task.lease_expire_time()), task.worker(),
       name.project, NeedClass(task), Parameter::Blob(task.SerializeAsString())});
}

absl::Status PostgresTransaction::PutTrial(const JobName& name, const v1::Trial& trial) {
  ASSIGN_OR_RETURN(const KnownJob* job, Find(name));
  return connection_.Send(kPutTrial,
                          {job->id, trial.index(), Parameter::Blob(trial.SerializeAsString())});
}

absl::Status PostgresTransaction::PutArtifact(const JobName& job, const v1::Artifact& artifact) {
  ASSIGN_OR_RETURN(const std::string path, ArtifactPathIn(job, artifact));
  ASSIGN_OR_RETURN(const KnownJob* known, Find(job));
  return connection_.Send(kPutArtifact, {known->id, path, artifact.sha256(),
                                         Parameter::Blob(artifact.SerializeAsString())});
}

absl::Status PostgresTransaction::RemoveArtifact(const JobName& job, const std::string& path) {
  ASSIGN_OR_RETURN(const KnownJob* known, Find(job));
  return connection_.Send(kRemoveArtifact, {known->id, path});
}

absl::Status PostgresTransaction::AppendEvent(const JobName& name, const v1::JobEvent& event) {
  ASSIGN_OR_RETURN(KnownJob* const job, Find(name));
  RETURN_IF_ERROR(CheckEventSequence(name, job->last_sequence, event.sequence()));
  job->last_sequence = event.sequence();
  changed_jobs_.insert(name.ToString());
  return connection_.Send(kInsertEvent,
                          {job->id, event.sequence(), Parameter::Blob(event.SerializeAsString())});
}

absl::Status PostgresTransaction::LockArtifacts(ArtifactLock lock) {
  return connection_
      .Run(lock == ArtifactLock::kAdd ? kLockArtifactsToAdd : kLockArtifactsToRemove,
           {kArtifactLock})
      .status();
}

}  // namespace qpruner::server
