#include "server/store/postgres_job_store.h"

#include <condition_variable>
#include <map>
#include <mutex>

#include "proto/status_codec.h"
#include "server/store/job_store_contract_test.h"
#include "server/store/postgres_connection.h"
#include "server/store/postgres_schema.h"
#include "server/store/postgres_transaction.h"
#include "server/testing/postgres_cluster.h"

namespace qpruner::server {
namespace {

using internal::v1::JobRecord;
using testing::HasSubstr;

class PostgresUnderTest final : public JobStoreUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<JobStore>> Open() override {
    return OpenPostgresJobStore({.url = url_});
  }

 private:
  const std::string url_ = PostgresCluster::Shared()->NewDatabase();
};

std::unique_ptr<JobStoreUnderTest> MakePostgresUnderTest() {
  return std::make_unique<PostgresUnderTest>();
}

std::vector<MakeJobStoreUnderTest> WherePostgresRuns() {
  if (PostgresCluster::Shared() == nullptr) return {};
  return {&MakePostgresUnderTest};
}

INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreContract, testing::ValuesIn(WherePostgresRuns()));

class PostgresUpgrade : public JobStoreContract {};
INSTANTIATE_TEST_SUITE_P(Postgres, PostgresUpgrade, testing::ValuesIn(WherePostgresRuns()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PostgresUpgrade);

TEST_P(PostgresUpgrade, ADatabaseOfTheFirstVersionGoesOn) {
  const std::string url = PostgresCluster::Shared()->NewDatabase();
  const auto old = PostgresConnection::Connect({.url = url}).value();
  ASSERT_TRUE(MigratePostgresSchema(*old, 1).ok());
  const auto blob = [](const auto& record) {
    return PostgresParameter::Blob(record.SerializeAsString());
  };
  const auto job = old->Run({"old_job",
                             "INSERT INTO jobs (project, job, state, labels, record) "
                             "VALUES ($1, $2, $3, $4, $5) RETURNING id"},
                            {"default", "a", Job::RUNNING, R"({"team": "blue"})",
                             blob(MakeJob(Name("a"), Job::RUNNING, {{"team", "blue"}}))});
  ASSERT_TRUE(job.ok()) << job.status();
  Task task = MakeTask(Name("a"), "prepare");
  task.set_priority(3);
  ASSERT_TRUE(old->Run({"old_task",
                        "INSERT INTO tasks (job_id, task_id, state, priority, create_time, "
                        "not_before, lease_expire_time, worker, record) "
                        "VALUES ($1, 'prepare', 1, 3, 100000000000, 0, 0, '', $2)"},
                       {job->Int(0, 0), blob(task)})
                  .ok());
  ASSERT_TRUE(
      old->Run({"old_trial", "INSERT INTO trials (job_id, trial_index, record) VALUES ($1, 1, $2)"},
               {job->Int(0, 0), blob(MakeTrial(1))})
          .ok());
  const auto store = OpenPostgresJobStore({.url = url});
  ASSERT_TRUE(store.ok()) << store.status();
  ExpectOldJobGoesOn(**store);
}

class PostgresJobStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    if (PostgresCluster::Shared() == nullptr) GTEST_SKIP() << "PostgreSQL cannot be run here";
    url_ = PostgresCluster::Shared()->NewDatabase();
  }
  std::unique_ptr<JobStore> Open() {
    auto store = OpenPostgresJobStore({.url = url_});
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  static JobName Name(int number) { return {"default", absl::StrCat("j", number)}; }
  static absl::Status InsertJob(StoreTransaction& transaction, const JobName& name) {
    JobRecord record;
    record.mutable_job()->set_name(name.ToString());
    record.mutable_job()->set_state(v1::CompressionJob::PENDING);
    return transaction.InsertJob(record);
  }
  static absl::Status PutTask(StoreTransaction& transaction, const JobName& name) {
    internal::v1::TaskRecord task;
    task.set_job(name.ToString());
    task.set_task_id("prepare");
    task.set_state(internal::v1::TaskRecord::QUEUED);
    return transaction.PutTask(task);
  }
  static size_t CountJobs(JobStore& store) {
    size_t count = 0;
    const absl::Status status = store.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(const auto page, reader.OldestJobs(0, 0));
      count = page.jobs.size();
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return count;
  }

  std::string url_;
};

TEST_F(PostgresJobStoreTest, ListsUseTheIndexOfEveryState) {
  ASSERT_NE(Open(), nullptr);
  auto connection = PostgresConnection::Connect({.url = url_});
  ASSERT_TRUE(connection.ok()) << connection.status();
  // Of an empty table, all plans cost the same.
  ASSERT_TRUE((*connection)->ExecuteScript("SET enable_seqscan = off").ok());
  const std::string sql = absl::StrCat("EXPLAIN ", kListJobsByState.sql);
  const auto rows =
      (*connection)
          ->Run({"explain_list", sql.c_str()}, {"default", int64_t{1000}, int64_t{100}, "{1,4}"});
  ASSERT_TRUE(rows.ok()) << rows.status();
  std::string plan;
  for (int row = 0; row < rows->row_count(); ++row) {
    absl::StrAppend(&plan, rows->Bytes(row, 0), "\n");
  }
  EXPECT_THAT(plan, HasSubstr("using jobs_by_state"));
  EXPECT_THAT(plan, HasSubstr("(state = wanted.state)"));
}

TEST_F(PostgresJobStoreTest, ServersThatStartTogetherMigrateOnce) {
  constexpr int kServers = 6;
  std::vector<absl::Status> statuses(kServers);
  std::vector<std::thread> servers;
  for (int i = 0; i < kServers; ++i) {
    servers.emplace_back([&, i] { statuses[i] = OpenPostgresJobStore({.url = url_}).status(); });
  }
  for (std::thread& server : servers) server.join();
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST_F(PostgresJobStoreTest, RefusesWhatANewerVersionMigrated) {
  Open();
  ASSERT_TRUE(PostgresCluster::Shared()
                  ->Execute(url_, absl::StrCat("UPDATE qpruner.schema_version SET version = ",
                                               kPostgresSchemaVersion + 1))
                  .ok());
  const absl::Status status = OpenPostgresJobStore({.url = url_}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("a newer QPruner"));
}

TEST_F(PostgresJobStoreTest, RefusesAnotherProgramsTables) {
  ASSERT_TRUE(PostgresCluster::Shared()
                  ->Execute(url_, "CREATE SCHEMA qpruner; CREATE TABLE qpruner.jobs (a int);")
                  .ok());
  const absl::Status status = OpenPostgresJobStore({.url = url_}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("another program"));
}

TEST_F(PostgresJobStoreTest, SaysWhatIsWrongWithTheConnection) {
  const auto open = [](const std::string& url) {
    return OpenPostgresJobStore({.url = url, .patience = absl::Milliseconds(1)}).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(open("not a url")));
  const absl::Status password = open("postgresql://me:sesame@localhost/db");
  EXPECT_TRUE(absl::IsInvalidArgument(password));
  EXPECT_EQ(std::string(password.message()).find("sesame"), std::string::npos);
  EXPECT_TRUE(absl::IsUnavailable(open("postgresql:///db?host=/nonexistent")));
  std::string missing = url_;
  missing.replace(missing.find("///test"), 7, "///none");
  EXPECT_TRUE(absl::IsFailedPrecondition(open(missing))) << open(missing);
}

TEST_F(PostgresJobStoreTest, ARestartOfTheDatabaseLosesNothing) {
  const auto store = Open();
  ASSERT_TRUE(store->Transact([](StoreTransaction& t) { return InsertJob(t, Name(0)); }).ok());
  ASSERT_TRUE(PostgresCluster::Shared()->Restart().ok());
  // Every pooled connection is broken: none of the callers notices.
  EXPECT_EQ(CountJobs(*store), 1u);
  ASSERT_TRUE(store->Transact([](StoreTransaction& t) { return InsertJob(t, Name(1)); }).ok());

  // In mid-load: whatever was acknowledged is there.
  std::atomic<bool> stop = false;
  std::atomic<int> calls = 0;
  std::vector<std::vector<int>> accepted(4);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; !stop; ++round) {
        const int number = 100'000 * (i + 1) + round;
        const absl::Status status =
            store->Transact([&](StoreTransaction& t) { return InsertJob(t, Name(number)); });
        if (status.ok()) {
          accepted[i].push_back(number);
        } else {
          // A commit whose fate is unknown may have been made.
          EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        }
        ++calls;
        calls.notify_one();
      }
    });
  }
  const auto await_calls = [&](int more) {
    const int target = calls + more;
    for (int now = calls; now < target; now = calls) calls.wait(now);
  };
  await_calls(40);
  ASSERT_TRUE(PostgresCluster::Shared()->Restart().ok());
  await_calls(40);
  stop = true;
  for (std::thread& caller : callers) caller.join();
  const absl::Status status = store->Read([&](StoreReader& reader) -> absl::Status {
    for (const auto& numbers : accepted) {
      for (const int number : numbers) EXPECT_TRUE(reader.GetJob(Name(number)).ok()) << number;
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(PostgresJobStoreTest, IsUnavailableWhileTheDatabaseIsAway) {
  auto opened = OpenPostgresJobStore({.url = url_, .patience = absl::Milliseconds(100)});
  ASSERT_TRUE(opened.ok()) << opened.status();
  PostgresCluster::Shared()->Kill();
  const absl::Status status =
      (*opened)->Transact([](StoreTransaction& t) { return InsertJob(t, Name(1)); });
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  ASSERT_TRUE(PostgresCluster::Shared()->StartServer().ok());
  // The back-off since is longer than this store's patience.
  absl::Status again;
  do {
    again = (*opened)->Transact([](StoreTransaction& t) { return InsertJob(t, Name(1)); });
  } while (absl::IsUnavailable(again));
  EXPECT_TRUE(again.ok()) << again;
}

// What an administrator does to a database in use. Callers of the API hear that it is not
// available, and no name of anything in it; once it is mended they go on.
TEST_F(PostgresJobStoreTest, RefusalsAtRunTimeAreUnavailableAndNameNothing) {
  ASSERT_NE(Open(), nullptr);
  PostgresCluster& cluster = *PostgresCluster::Shared();
  const std::string database = url_.substr(url_.find("test"), url_.find('?') - url_.find("test"));
  const auto execute = [&](const std::string& sql) {
    const absl::Status status = cluster.Execute(url_, sql);
    ASSERT_TRUE(status.ok()) << sql << ": " << status;
  };
  // Once for all tests of this program.
  cluster.Execute(url_, "CREATE ROLE clerk LOGIN").IgnoreError();
  execute(
      "GRANT USAGE ON SCHEMA qpruner TO clerk; GRANT ALL ON ALL TABLES IN SCHEMA qpruner TO "
      "clerk;");
  std::string url = url_;
  url.replace(url.find("user=qpruner"), 12, "user=clerk");
  auto opened = OpenPostgresJobStore({.url = url, .patience = absl::Milliseconds(50)});
  ASSERT_TRUE(opened.ok()) << opened.status();
  int number = 0;
  const auto insert = [&] {
    return (*opened)->Transact([&](StoreTransaction& t) { return InsertJob(t, Name(++number)); });
  };
  const auto read = [&] {
    return (*opened)->Read([](StoreReader& reader) { return reader.OldestJobs(0, 1).status(); });
  };
  const std::string end_sessions =
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'clerk'; ";
  const struct {
    std::string refuse, mend;
  } kCases[] = {
      {"REVOKE ALL ON ALL TABLES IN SCHEMA qpruner FROM clerk",
       "GRANT ALL ON ALL TABLES IN SCHEMA qpruner TO clerk"},
      {"REVOKE USAGE ON SCHEMA qpruner FROM clerk", "GRANT USAGE ON SCHEMA qpruner TO clerk"},
      {"ALTER SCHEMA qpruner RENAME TO elsewhere", "ALTER SCHEMA elsewhere RENAME TO qpruner"},
      {"ALTER ROLE clerk NOLOGIN; " + end_sessions, "ALTER ROLE clerk LOGIN"},
      {"ALTER ROLE clerk RENAME TO former_clerk; " + end_sessions +
           "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'former_clerk'",
       "ALTER ROLE former_clerk RENAME TO clerk"},
      {"ALTER ROLE clerk CONNECTION LIMIT 0; " + end_sessions,
       "ALTER ROLE clerk CONNECTION LIMIT -1"},
      {"ALTER ROLE clerk SET default_transaction_read_only = on; " + end_sessions,
       "ALTER ROLE clerk RESET default_transaction_read_only; " + end_sessions},
  };
  for (const auto& [refuse, mend] : kCases) {
    ASSERT_TRUE(insert().ok()) << "before " << refuse;
    execute(refuse);
    for (const absl::Status& status : {insert(), read()}) {
      EXPECT_TRUE(absl::IsUnavailable(status)) << refuse << ": " << status;
      EXPECT_EQ(RetryDelay(status), absl::Seconds(1)) << refuse << ": " << status;
      for (const std::string& name : {std::string("jobs"), std::string("clerk"),
                                      std::string("schema"), database, cluster.folder()}) {
        EXPECT_EQ(status.ToString().find(name), std::string::npos) << refuse << ": " << status;
      }
    }
    execute(mend);
    // The back-off since is longer than this store's patience.
    absl::Status again;
    do {
      again = insert();
    } while (absl::IsUnavailable(again));
    EXPECT_TRUE(again.ok()) << mend << ": " << again;
  }
}

// A newer server has started beside this one, which must not go on with what it takes the tables
// for.
TEST_F(PostgresJobStoreTest, AMigratedSchemaIsNotTouchedByAServerThatRuns) {
  PostgresCluster& cluster = *PostgresCluster::Shared();
  const auto execute = [&](const std::string& sql) {
    const absl::Status status = cluster.Execute(url_, sql);
    ASSERT_TRUE(status.ok()) << sql << ": " << status;
  };
  const auto set_version = [&](int version) {
    execute(absl::StrCat("UPDATE qpruner.schema_version SET version = ", version));
  };
  int number = 0;
  const auto insert = [&](JobStore& store) {
    return store.Transact([&](StoreTransaction& t) { return InsertJob(t, Name(++number)); });
  };
  const absl::Duration patience = absl::Milliseconds(50);
  // One looks at every connection that it takes, the other only at new ones.
  const auto watchful = OpenPostgresJobStore(
      {.url = url_, .patience = patience, .schema_check_interval = absl::ZeroDuration()});
  const auto lazy = OpenPostgresJobStore(
      {.url = url_, .patience = patience, .schema_check_interval = absl::InfiniteDuration()});
  ASSERT_TRUE(watchful.ok() && lazy.ok()) << watchful.status() << lazy.status();
  for (const int version : {kPostgresSchemaVersion + 1, kPostgresSchemaVersion - 1}) {
    ASSERT_TRUE(insert(**watchful).ok());
    ASSERT_TRUE(insert(**lazy).ok());
    const size_t before = CountJobs(**lazy);
    set_version(version);
    for (JobStore* store : {watchful->get(), lazy->get()}) {
      if (store == lazy->get()) {
        execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database()");
      }
      for (int i = 0; i < 3; ++i) {
        const absl::Status status = insert(*store);
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        EXPECT_EQ(RetryDelay(status), absl::Seconds(1)) << status;
      }
    }
    auto connection = PostgresConnection::Connect({.url = url_});
    ASSERT_TRUE(connection.ok()) << connection.status();
    const absl::Status why = CheckPostgresSchema(**connection);
    EXPECT_TRUE(absl::IsFailedPrecondition(why)) << why;
    EXPECT_THAT(std::string(why.message()),
                HasSubstr(absl::StrCat("has schema version ", version, " now")));
    set_version(kPostgresSchemaVersion);
    for (JobStore* store : {watchful->get(), lazy->get()}) {
      absl::Status again;
      do {
        again = insert(*store);
      } while (absl::IsUnavailable(again));
      EXPECT_TRUE(again.ok()) << again;
    }
    EXPECT_EQ(CountJobs(**lazy), before + 2) << "nothing else was written";
  }
}

// As in a primary that lives on, read-only, after a failover: only a new connection finds the
// other.
TEST_F(PostgresJobStoreTest, AReadOnlySessionIsGivenUp) {
  auto connection = PostgresConnection::Connect({.url = url_});
  ASSERT_TRUE(connection.ok()) << connection.status();
  ASSERT_TRUE((*connection)->ExecuteScript("SET default_transaction_read_only TO on").ok());
  EXPECT_TRUE(absl::IsUnavailable((*connection)->ExecuteScript("CREATE TABLE t (a int)")));
  EXPECT_EQ((*connection)->failure(), PostgresConnection::Failure::kLost);
}

TEST_F(PostgresJobStoreTest, ASessionThatWaitsForAStorageOfFilesIsNotEndedSoon) {
  Open();
  auto connection = PostgresConnection::Connect({.url = url_});
  ASSERT_TRUE(connection.ok()) << connection.status();
  const auto timeout = [&] {
    const auto shown =
        (*connection)->Run({"timeout", "SHOW idle_in_transaction_session_timeout"}, {});
    return shown.ok() ? std::string(shown->Bytes(0, 0)) : shown.status().ToString();
  };
  EXPECT_EQ(timeout(), "10s");
  using Lock = StoreTransaction::ArtifactLock;
  for (const Lock lock : {Lock::kAdd, Lock::kRemove}) {
    ASSERT_TRUE((*connection)->Run({"begin", "BEGIN"}, {}).ok());
    PostgresTransaction transaction(**connection, PostgresTransaction::Mode::kWrite);
    ASSERT_TRUE(transaction.LockArtifacts(lock).ok());
    EXPECT_EQ(timeout(), "1min");
    ASSERT_TRUE((*connection)->Run({"commit", "COMMIT"}, {}).ok());
    EXPECT_EQ(timeout(), "10s");
  }
}

TEST_F(PostgresJobStoreTest, TasksThatOneServerTakesAreSkippedByAnother) {
  const auto a = Open(), b = Open();
  ASSERT_TRUE(a->Transact([](StoreTransaction& t) -> absl::Status {
                 for (int i = 0; i < 2; ++i) {
                   RETURN_IF_ERROR(InsertJob(t, Name(i)));
                   RETURN_IF_ERROR(PutTask(t, Name(i)));
                 }
                 return absl::OkStatus();
               }).ok());
  const auto take = [](StoreTransaction& t, int job) {
    auto task = t.TakeTask(Name(job), "prepare", absl::InfiniteFuture());
    EXPECT_TRUE(task.ok()) << task.status();
    return task.ok() && task->has_value();
  };
  EXPECT_TRUE(a->Transact([&](StoreTransaction& mine) {
                 EXPECT_TRUE(take(mine, 0));
                 // Without waiting for this one.
                 return b->Transact([&](StoreTransaction& theirs) {
                   EXPECT_FALSE(take(theirs, 0));
                   EXPECT_TRUE(take(theirs, 1));
                   return absl::OkStatus();
                 });
               }).ok());
}

// Two transactions that lock two jobs in opposite orders: PostgreSQL ends one, which is run again.
TEST_F(PostgresJobStoreTest, DeadlocksAreRunAgain) {
  const auto store = Open();
  ASSERT_TRUE(store
                  ->Transact([](StoreTransaction& t) -> absl::Status {
                    RETURN_IF_ERROR(InsertJob(t, Name(0)));
                    return InsertJob(t, Name(1));
                  })
                  .ok());
  std::atomic<int> holding = 0, runs = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      const absl::Status status = store->Transact([&](StoreTransaction& t) -> absl::Status {
        ++runs;
        RETURN_IF_ERROR(t.GetJob(Name(i)).status());
        ++holding;
        holding.notify_all();
        for (int now = holding; now < 2; now = holding) holding.wait(now);
        return t.GetJob(Name(1 - i)).status();
      });
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(runs, 3);
}

// What a listener has heard.
class Hearing final : public StoreListener {
 public:
  void OnJobChanged(const std::string& job) override {
    std::lock_guard lock(mutex_);
    ++changes_[job];
    heard_.notify_all();
  }
  void OnChangesMissed() override {
    std::lock_guard lock(mutex_);
    ++missed_;
    heard_.notify_all();
  }
  bool AwaitChange(const std::string& job) {
    std::unique_lock lock(mutex_);
    return heard_.wait_for(lock, std::chrono::seconds(30), [&] { return changes_.contains(job); });
  }
  // True if something new was heard within a moment.
  bool AwaitAnything(int64_t& heard) {
    std::unique_lock lock(mutex_);
    const bool more = heard_.wait_for(lock, std::chrono::milliseconds(100), [&] {
      return static_cast<int64_t>(changes_.size()) > heard;
    });
    heard = static_cast<int64_t>(changes_.size());
    return more;
  }
  int missed() {
    std::lock_guard lock(mutex_);
    return missed_;
  }
  bool Knows(const std::string& job) {
    std::lock_guard lock(mutex_);
    return changes_.contains(job);
  }

 private:
  std::mutex mutex_;
  std::condition_variable heard_;
  std::map<std::string, int> changes_;
  int missed_ = 0;
};

TEST_F(PostgresJobStoreTest, ServersHearOfEachOthersCommits) {
  const auto a = Open(), b = Open();
  Hearing at_a, at_b;
  a->SetListener(&at_a);
  b->SetListener(&at_b);
  int number = 100;
  const auto commit = [](JobStore& store, int number) {
    ASSERT_TRUE(
        store.Transact([&](StoreTransaction& t) { return InsertJob(t, Name(number)); }).ok());
  };
  // Both listen on threads of their own, from some moment on: commits until each has heard one.
  const auto await_both_listening = [&] {
    int64_t heard_a = 0, heard_b = 0;
    at_a.AwaitAnything(heard_a);
    at_b.AwaitAnything(heard_b);
    do {
      commit(*b, number++);
    } while (!at_a.AwaitAnything(heard_a));
    do {
      commit(*a, number++);
    } while (!at_b.AwaitAnything(heard_b));
  };
  await_both_listening();
  commit(*b, 1);
  EXPECT_TRUE(at_a.AwaitChange(Name(1).ToString()));
  // Not one's own, and not what was not committed.
  EXPECT_EQ(b->Transact([](StoreTransaction& t) -> absl::Status {
               RETURN_IF_ERROR(InsertJob(t, Name(2)));
               return absl::AbortedError("no");
             }).code(),
            absl::StatusCode::kAborted);
  commit(*b, 3);
  EXPECT_TRUE(at_a.AwaitChange(Name(3).ToString()));
  EXPECT_FALSE(at_a.Knows(Name(2).ToString()));
  EXPECT_FALSE(at_b.Knows(Name(1).ToString()));

  // After a lost connection everything may have changed, and what comes after is heard again.
  const int missed = at_a.missed();
  ASSERT_TRUE(PostgresCluster::Shared()->Restart().ok());
  await_both_listening();
  EXPECT_GT(at_a.missed(), missed);
  a->SetListener(nullptr);
  b->SetListener(nullptr);
}

// As docs/operations.md says, while the store is in use.
TEST_F(PostgresJobStoreTest, ADumpRestoresIntoAnotherDatabase) {
  const auto store = Open();
  ASSERT_TRUE(store
                  ->Transact([](StoreTransaction& t) -> absl::Status {
                    RETURN_IF_ERROR(InsertJob(t, Name(1)));
                    return PutTask(t, Name(1));
                  })
                  .ok());
  const std::string dump = PostgresCluster::Shared()->folder() + "/qpruner.dump";
  ASSERT_TRUE(PostgresCluster::Shared()
                  ->RunProgram("pg_dump", {"--format=custom", "--schema=qpruner", "--file=" + dump,
                                           "--dbname=" + url_})
                  .ok());
  url_ = PostgresCluster::Shared()->NewDatabase();
  const absl::Status restored =
      PostgresCluster::Shared()->RunProgram("pg_restore", {"--dbname=" + url_, dump});
  ASSERT_TRUE(restored.ok()) << restored;
  const auto copy = Open();
  EXPECT_EQ(CountJobs(*copy), 1u);
  // New rows do not collide with restored ones.
  EXPECT_TRUE(copy->Transact([](StoreTransaction& t) -> absl::Status {
                    RETURN_IF_ERROR(InsertJob(t, Name(2)));
                    return PutTask(t, Name(2));
                  })
                  .ok());
}

TEST_F(PostgresJobStoreTest, TextThatWouldEndAStringIsText) {
  const auto store = Open();
  const std::string evil = "x'; DROP TABLE jobs; --\" \\";
  JobRecord record;
  record.mutable_job()->set_name(Name(1).ToString());
  record.mutable_job()->set_state(v1::CompressionJob::PENDING);
  (*record.mutable_job()->mutable_labels())[evil] = evil;
  ASSERT_TRUE(store
                  ->Transact([&](StoreTransaction& t) -> absl::Status {
                    RETURN_IF_ERROR(t.InsertJob(record));
                    return t.InsertRequest("default", evil, {Name(1), evil});
                  })
                  .ok());
  const absl::Status status = store->Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(const auto page, reader.ListJobs({"default", {}, {{evil, evil}}}, 10, ""));
    EXPECT_EQ(page.jobs.size(), 1u);
    ASSIGN_OR_RETURN(const auto request, reader.FindRequest("default", evil));
    EXPECT_EQ(request->fingerprint, evil);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace qpruner::server
